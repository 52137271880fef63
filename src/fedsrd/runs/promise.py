"""What a run promises about the data that it has learnt from, in sentences: for terminal, report and model card."""

from fedsrd.runs.records import Guarantee, Summary

UNIT = {
    "examples": "one example more or less in its data",
    "clients": "whether a client's updates are there or zero",
}


def sentences(summary: Summary) -> list[str]:
    """One sentence a guarantee, the clients that share one together; none where nothing is promised."""
    found: list[str] = []
    by_promise: dict[tuple[float, float], list[str]] = {}
    for name, promise in summary.privacy.items():
        by_promise.setdefault((promise.epsilon, promise.delta), []).append(name)
    for (epsilon, delta), names in by_promise.items():
        who = ", ".join(names)
        found.append(f"{_promise(Guarantee(epsilon=epsilon, delta=delta))} of examples at {who} ({UNIT['examples']})")
    silent = summary.clients - len(summary.privacy)
    if found and silent > 0:
        found.append(f"nothing is promised about the examples of {silent} other client{'s' if silent > 1 else ''}")
    if summary.privacy_of_clients is not None:
        found.append(f"{_promise(summary.privacy_of_clients)} of clients ({UNIT['clients']})")
    return found


def _promise(found: Guarantee) -> str:
    return f"({found.epsilon:.3g}, {found.delta:.0e})-differential privacy"

"""A run's part of the report, from what lies in its folder. Nothing here computes on a model."""

from collections.abc import Sequence
from pathlib import Path

from fedsrd.errors import RunFolderError
from fedsrd.evaluation import embedded, scores
from fedsrd.recipe import Recipe
from fedsrd.report import terminal
from fedsrd.report.page import charts, html
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Summary

MIB = 1 << 20


def read(path: Path) -> tuple[Recipe, list[RoundRecord], Summary]:
    """A complete run's recipe, records and summary.

    Raises:
        RunFolderError: there is no run, or it is not complete.
    """
    folder = RunFolder(path)
    recipe = folder.stored_recipe()
    if not folder.complete:
        raise RunFolderError(f"{path}: the run is not complete; finish it first: fedsrd run --resume --out {path}")
    return recipe, folder.records(), folder.summary()


def sections(path: Path, prefix: str) -> tuple[str, str]:
    """Title and HTML of a run. `prefix` makes the names of its figures unique in the page."""
    recipe, records, summary = read(path)
    rounds = records[1:]
    parts = [
        f'<p class="soft">{html.text(recipe.method["name"])} on {html.text(recipe.model.id)}, '
        f"{summary.clients} clients, {summary.rounds} rounds, seed {recipe.seed}</p>",
        html.cards(_cards(summary)),
        _quality(records, summary, prefix),
        _benchmarks(summary),
        _bytes(rounds, summary, prefix),
        _seconds(rounds, prefix),
        _sparsity(rounds, prefix),
        _rounds(rounds),
        _samples(records),
        _adapter(path),
        _repeat(path, recipe),
    ]
    return recipe.name, "".join(parts)


def _cards(summary: Summary) -> list[tuple[str, str]]:
    base, final = summary.base, summary.final
    before, after = base and base.in_domain, final and final.in_domain
    known = before is not None and after is not None
    seconds = sum(summary.seconds.values())
    whole = summary.bytes_up + summary.bytes_down
    return [
        ("in-domain NLL, before → after", f"{before:.3f} → {after:.3f}" if known else ""),
        ("sent by all, up and down", terminal.amount(whole)),
        ("of dense float32 (FedAvg)", _percent(summary.ratio_to_dense_float32)),
        ("of dense bfloat16", _percent(summary.ratio_to_dense_bfloat16)),
        ("adapter parameters", f"{summary.parameters:,}"),
        ("seconds, all clients and server", f"{seconds:,.0f}"),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _quality(records: Sequence[RoundRecord], summary: Summary, prefix: str) -> str:
    measured = [record for record in records if record.eval]
    parts = ["<h3>Quality</h3>"]
    if measured:
        numbers = [record.round for record in measured]
        series = {name: (numbers, [record.eval[name] for record in measured]) for name in measured[0].eval}
        figure = charts.lines(series, "round", "NLL, nats a token", xaxis=charts.rounds_axis(numbers))
        parts.append(
            html.figure(
                f"{prefix}-quality",
                figure,
                "Held-out response NLL by set, less is better; round 0 is the base model.",
            )
        )
    if summary.base is not None and summary.final is not None:
        base, final = summary.base, summary.final
        pairs: list[tuple[str, float | None, float | None]] = [
            *((name, value, final.by_set[name]) for name, value in base.by_set.items()),
            ("mean in domain", base.in_domain, final.in_domain),
            ("mean out of domain", base.out_of_domain, final.out_of_domain),
        ]
        rows = [
            [label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
            for label, before, after in pairs
            if before is not None and after is not None
        ]
        parts.append(html.table(["set", "base model", "after", "change"], rows, "NLL, nats a token"))
    clients = list(dict.fromkeys(name for record in records[1:] for name in record.train_loss_by_client))
    series = {
        name: (
            [record.round for record in records[1:] if name in record.train_loss_by_client],
            [r.train_loss_by_client[name] for r in records[1:] if name in r.train_loss_by_client],
        )
        for name in clients
    }
    if series:
        figure = charts.lines(
            series, "round", "training loss, nats a token", xaxis=charts.rounds_axis([r.round for r in records])
        )
        parts.append(html.figure(f"{prefix}-loss", figure, "Training loss of each client, mean over the round."))
    return "".join(parts)


def _benchmarks(summary: Summary) -> str:
    if not summary.benchmarks:
        return ""
    heads, rows = scores.table(embedded.before_and_after(summary.benchmarks))
    return "<h3>Benchmarks</h3>" + html.table(heads, rows, "↓: less is better; ± one standard error")


def _bytes(rounds: Sequence[RoundRecord], summary: Summary, prefix: str) -> str:
    if not any(record.bytes_up for record in rounds):
        return ""
    numbers = [record.round for record in rounds]
    series = {
        "up": [_mean(record.bytes_up) / MIB for record in rounds],
        "down": [_mean(record.bytes_down) / MIB for record in rounds],
    }
    dense = 4 * summary.parameters / MIB
    figure = charts.lines(
        {name: (numbers, values) for name, values in series.items()},
        "round",
        "MiB a client, log scale",
        xaxis=charts.rounds_axis(numbers),
        yaxis={"type": "log"},
    )
    for share, label in ((1, "FedAvg each way, float32"), (0.5, "FedAvg, bfloat16")):
        charts.level(figure, dense * share, label)
    rows = [
        ["up", terminal.amount(summary.bytes_up)],
        ["down", terminal.amount(summary.bytes_down)],
        ["FedAvg, float32, both ways", terminal.amount(_dense(summary, 1))],
        ["FedAvg, bfloat16, both ways", terminal.amount(_dense(summary, 2))],
    ]
    return (
        "<h3>Bytes</h3>"
        + html.figure(f"{prefix}-bytes", figure, "Lengths of real payloads, the mean over the round's clients.")
        + html.table(["all clients and rounds", "bytes"], rows)
    )


def _dense(summary: Summary, halves: int) -> float:
    share = summary.ratio_to_dense_float32
    return (summary.bytes_up + summary.bytes_down) / share / halves if share else 0.0


def _seconds(rounds: Sequence[RoundRecord], prefix: str) -> str:
    if not rounds:
        return ""
    phases = {
        name: [sum(record.seconds[phase] for phase in members) for record in rounds]
        for name, members in terminal.PHASES.items()
    }
    figure = charts.bars(phases, [record.round for record in rounds], "round", "seconds, all clients")
    return "<h3>Time</h3>" + html.figure(f"{prefix}-seconds", figure, "Seconds a round by phase, clients added up.")


def _sparsity(rounds: Sequence[RoundRecord], prefix: str) -> str:
    parts: list[str] = []
    for factor in ("B", "A"):
        keys = [key for key in (rounds[0].density_up_by_layer if rounds else {}) if key.endswith(factor)]
        layers = sorted((key.rpartition(".")[0] for key in keys), key=lambda name: (len(name), name))
        if not layers:
            continue
        values = [[_share(record, f"{layer}.{factor}") for record in rounds] for layer in layers]
        figure = charts.heat(values, [record.round for record in rounds], layers, "round", "layer")
        caption = f"Share of factor {factor}'s changes that clients sent, by layer and round, mean over clients."
        parts.append(html.figure(f"{prefix}-sparsity-{factor}", figure, caption))
    return "<h3>Sparsity of the uplink</h3>" + "".join(parts) if parts else ""


def _share(record: RoundRecord, key: str) -> float | None:
    value = record.density_up_by_layer.get(key)
    return None if value is None else 100 * value


def _rounds(rounds: Sequence[RoundRecord]) -> str:
    rows = []
    for record in rounds:
        out = "; ".join(f"{name}: {reason}" for name, reason in record.rejected.items())
        cells = [
            str(record.round),
            str(len(record.bytes_up)),
            record.factor_down,
            str(record.attempts),
        ]
        rows.append([*cells, record.digest[:12], out or "nobody"])
    heads = ["round", "updates", "factor down", "attempts", "digest", "left out"]
    caption = "Each round's closed state: equal digests at server and clients, or the round fails."
    return "<h3>Rounds</h3>" + html.table(heads, rows, caption, texts=(5,))


def _samples(records: Sequence[RoundRecord]) -> str:
    before = next((record.samples for record in records if record.samples), None)
    after = next((record.samples for record in reversed(records) if record.samples), None)
    if not before or not after or before is after:
        return ""
    parts: list[str] = []
    for name, prompts in before.items():
        for place, one in enumerate(prompts):
            then = after[name][place]
            pair = "".join(
                f'<div><p class="soft">{label}</p>{html.flow(content)}</div>'
                for label, content in (
                    ("base model", one.answer),
                    ("after", then.answer),
                    ("reference", one.wanted),
                )
            )
            inside = f'{html.flow(one.prompt)}<div class="pair">{pair}</div>'
            parts.append(html.fold(f"{name}: {one.prompt[:90]}", inside, open_=place == 0 and not parts))
    return "<h3>Answers before and after</h3><p class='soft'>Held-out prompts, greedy.</p>" + "".join(parts)


def _adapter(path: Path) -> str:
    found = RunFolder(path).adapters()
    if not found:
        return ""
    snippet = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE")\nmodel = PeftModel.from_pretrained(base, "{found[0]}")'
    )
    others = f" and {len(found) - 1} more beside it" if len(found) > 1 else ""
    return f"<h3>Adapter</h3><p>{html.text(found[0])}{others}</p>{html.code(snippet)}"


def _repeat(path: Path, recipe: Recipe) -> str:
    versions = [[name, version] for name, version in recipe.environment.items()]
    return (
        "<h3>Repeat it</h3>"
        + html.code(f"fedsrd run {path}/recipe.toml --out NEW-FOLDER")
        + html.fold("Versions", html.table(["what", "version"], versions))
        + html.fold("Recipe", html.code((path / "recipe.toml").read_text(encoding="utf-8")))
    )


def _mean(found: dict[str, int]) -> float:
    return sum(found.values()) / len(found) if found else 0.0

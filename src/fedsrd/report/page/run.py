"""A run's part of the report, from what lies in its folder. Nothing here computes on a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedsrd.errors import RunFolderError
from fedsrd.evaluation import embedded, scores
from fedsrd.federation.runfolder import RunFolder
from fedsrd.report import terminal
from fedsrd.report.page import charts
from fedsrd.report.page.render import Plot, Table, render

Record = dict[str, Any]
MIB = 1 << 20


def read(path: Path) -> tuple[Any, list[Record], Record]:
    """A complete run's recipe, records and summary.

    Raises:
        RunFolderError: there is no run, or it is not complete.
    """
    folder = RunFolder(path)
    recipe = folder.stored_recipe()
    if not folder.complete:
        raise RunFolderError(f"{path}: the run is not complete; finish it first: fedsrd run --resume --out {path}")
    records = [json.loads(line) for line in (path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    summary: Record = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return recipe, records, summary


def sections(path: Path, prefix: str) -> tuple[str, Markup]:
    """Title and HTML of a run. `prefix` makes the names of its figures unique in the page."""
    recipe, records, summary = read(path)
    rounds = records[1:]
    adapters = RunFolder(path).adapters()
    body = render(
        "run",
        recipe=recipe,
        summary=summary,
        cards=_cards(summary),
        quality=_quality(records, prefix),
        quality_table=_quality_table(summary),
        loss=_loss(records, prefix),
        benchmarks=_benchmarks(summary),
        bytes=_bytes(rounds, summary, prefix),
        bytes_table=_bytes_table(summary),
        seconds=_seconds(rounds, prefix),
        sparsity=_sparsity(rounds, prefix),
        rounds=_rounds(rounds),
        samples=_samples(records),
        adapters=adapters,
        load_adapter=_load_adapter(adapters[0]) if adapters else "",
        command=f"fedsrd run {path}/recipe.toml --out NEW-FOLDER",
        versions=Table(["what", "version"], list(recipe.environment.items())),
        recipe_text=(path / "recipe.toml").read_text(encoding="utf-8"),
    )
    return recipe.name, body


def _cards(summary: Record) -> list[tuple[str, str]]:
    base, final = summary["base"], summary["final"]
    known = base is not None and base["in_domain"] is not None
    seconds = sum(summary["seconds"].values())
    whole = summary["bytes_up"] + summary["bytes_down"]
    return [
        ("in-domain NLL, before → after", f"{base['in_domain']:.3f} → {final['in_domain']:.3f}" if known else ""),
        ("sent by all, up and down", terminal.amount(whole)),
        ("of dense float32 (FedAvg)", _percent(summary["ratio_to_dense_float32"])),
        ("of dense bfloat16", _percent(summary["ratio_to_dense_bfloat16"])),
        ("adapter parameters", f"{summary['parameters']:,}"),
        ("seconds, all clients and server", f"{seconds:,.0f}"),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _quality(records: Sequence[Record], prefix: str) -> Plot | None:
    measured = [record for record in records if record["eval"]]
    if not measured:
        return None
    numbers = [record["round"] for record in measured]
    series = {name: (numbers, [record["eval"][name] for record in measured]) for name in measured[0]["eval"]}
    figure = charts.lines(series, "round", "NLL, nats a token", xaxis=charts.rounds_axis(numbers))
    caption = "Held-out response NLL by set, less is better; round 0 is the base model."
    return Plot(f"{prefix}-quality", figure, caption)


def _quality_table(summary: Record) -> Table:
    base, final = summary["base"], summary["final"]
    rows = []
    if base is not None:
        pairs = [(name, value, final["by_set"][name]) for name, value in base["by_set"].items()]
        for key, label in (("in_domain", "mean in domain"), ("out_of_domain", "mean out of domain")):
            if base[key] is not None:
                pairs.append((label, base[key], final[key]))
        rows = [[name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"] for name, before, after in pairs]
    return Table(["set", "base model", "after", "change"], rows)


def _loss(records: Sequence[Record], prefix: str) -> Plot | None:
    clients = list(dict.fromkeys(name for record in records[1:] for name in record["train_loss_by_client"]))
    series = {
        name: (
            [record["round"] for record in records[1:] if name in record["train_loss_by_client"]],
            [r["train_loss_by_client"][name] for r in records[1:] if name in r["train_loss_by_client"]],
        )
        for name in clients
    }
    if not series:
        return None
    figure = charts.lines(
        series, "round", "training loss, nats a token", xaxis=charts.rounds_axis([r["round"] for r in records])
    )
    return Plot(f"{prefix}-loss", figure, "Training loss of each client, mean over the round.")


def _benchmarks(summary: Record) -> Table | None:
    found = summary.get("benchmarks")
    return Table(*scores.table(embedded.before_and_after(found))) if found else None


def _bytes(rounds: Sequence[Record], summary: Record, prefix: str) -> Plot | None:
    if not any(record["bytes_up"] for record in rounds):
        return None
    numbers = [record["round"] for record in rounds]
    series = {
        "up": [_mean(record["bytes_up"]) / MIB for record in rounds],
        "down": [_mean(record["bytes_down"]) / MIB for record in rounds],
    }
    dense = 4 * summary["parameters"] / MIB
    figure = charts.lines(
        {name: (numbers, values) for name, values in series.items()},
        "round",
        "MiB a client, log scale",
        xaxis=charts.rounds_axis(numbers),
        yaxis={"type": "log"},
    )
    for share, label in ((1, "FedAvg each way, float32"), (0.5, "FedAvg, bfloat16")):
        charts.level(figure, dense * share, label)
    return Plot(f"{prefix}-bytes", figure, "Lengths of real payloads, the mean over the round's clients.")


def _bytes_table(summary: Record) -> Table:
    rows = [
        ["up", terminal.amount(summary["bytes_up"])],
        ["down", terminal.amount(summary["bytes_down"])],
        ["FedAvg, float32, both ways", terminal.amount(_dense(summary, 1))],
        ["FedAvg, bfloat16, both ways", terminal.amount(_dense(summary, 2))],
    ]
    return Table(["all clients and rounds", "bytes"], rows)


def _dense(summary: Record, halves: int) -> float:
    share = summary["ratio_to_dense_float32"]
    return (summary["bytes_up"] + summary["bytes_down"]) / share / halves if share else 0.0


def _seconds(rounds: Sequence[Record], prefix: str) -> Plot | None:
    if not rounds:
        return None
    phases = {
        name: [sum(record["seconds"][phase] for phase in members) for record in rounds]
        for name, members in terminal.PHASES.items()
    }
    figure = charts.bars(phases, [record["round"] for record in rounds], "round", "seconds, all clients")
    return Plot(f"{prefix}-seconds", figure, "Seconds a round by phase, clients added up.")


def _sparsity(rounds: Sequence[Record], prefix: str) -> list[Plot]:
    found = []
    for factor in ("B", "A"):
        keys = [key for key in (rounds[0] if rounds else {}).get("density_up_by_layer", {}) if key.endswith(factor)]
        layers = sorted((key.rpartition(".")[0] for key in keys), key=lambda name: (len(name), name))
        if not layers:
            continue
        values = [[_share(record, f"{layer}.{factor}") for record in rounds] for layer in layers]
        figure = charts.heat(values, [record["round"] for record in rounds], layers, "round", "layer")
        caption = f"Share of factor {factor}'s changes that clients sent, by layer and round, mean over clients."
        found.append(Plot(f"{prefix}-sparsity-{factor}", figure, caption))
    return found


def _share(record: Record, key: str) -> float | None:
    value = record["density_up_by_layer"].get(key)
    return None if value is None else 100 * value


def _rounds(rounds: Sequence[Record]) -> Table:
    rows = []
    for record in rounds:
        out = "; ".join(f"{name}: {reason}" for name, reason in record["rejected"].items())
        cells = [
            str(record["round"]),
            str(len(record["bytes_up"])),
            record["factor_down"],
            str(record.get("attempts", 1)),
        ]
        rows.append([*cells, record["digest"][:12], out or "nobody"])
    return Table(["round", "updates", "factor down", "attempts", "digest", "left out"], rows)


def _samples(records: Sequence[Record]) -> list[Record]:
    before = next((record["samples"] for record in records if "samples" in record), None)
    after = next((record["samples"] for record in reversed(records) if "samples" in record), None)
    if not before or not after or before is after:
        return []
    return [
        {
            "title": f"{name}: {one['prompt'][:90]}",
            "prompt": one["prompt"],
            "answers": [
                ("base model", one["answer"]),
                ("after", after[name][place]["answer"]),
                ("reference", one["wanted"]),
            ],
        }
        for name, prompts in before.items()
        for place, one in enumerate(prompts)
    ]


def _load_adapter(adapter: Path) -> str:
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE")\nmodel = PeftModel.from_pretrained(base, "{adapter}")'
    )


def _mean(found: dict[str, int]) -> float:
    return sum(found.values()) / len(found) if found else 0.0

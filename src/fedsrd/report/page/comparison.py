"""A comparison's part of the report, from its results.json."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedsrd.errors import RunFolderError
from fedsrd.report import comparison as tables
from fedsrd.report.page import charts
from fedsrd.report.page.render import Plot, Table, render

Record = dict[str, Any]


def read(path: Path) -> Record:
    """A comparison's results. Raises RunFolderError where the file is not as `fedsrd compare` writes it."""
    try:
        found: Record = json.loads((path / "results.json").read_text(encoding="utf-8"))
        tables.ordered(found)
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(f"{path}/results.json: not as `fedsrd compare` writes it") from None
    return found


def sections(path: Path, prefix: str) -> tuple[str, Markup]:
    """Title and HTML of a comparison. `prefix` makes the names of its figures unique in the page."""
    results = read(path)
    rows = tables.ordered(results)
    recipe = path / "comparison.toml"
    body = render(
        "comparison",
        methods=len(rows),
        seeds=results["seeds"],
        pareto=_pareto(rows, prefix),
        rounds=_rounds(rows, prefix),
        quality_table=Table(*tables.quality_rows(results)),
        benchmarks_table=Table(*tables.benchmark_rows(results)),
        costs_table=Table(*tables.cost_rows(results)),
        seconds=_seconds(rows, prefix),
        sparsity=_sparsity(rows, prefix),
        failed=_failed(results),
        command=f"fedsrd compare {recipe} --out NEW-FOLDER",
        versions=Table(["what", "version"], list(results.get("environment", {}).items())),
        recipe_text=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )
    return results["name"], body


def _pareto(rows: list[Record], prefix: str) -> Plot | None:
    found = [
        (
            row["label"],
            (row["bytes_up"]["mean"] + row["bytes_down"]["mean"]) / charts.MIB,
            row["own"]["mean"],
            row["own"]["sd"] or 0.0,
        )
        for row in rows
        if not row["reference"]
    ]
    if not found:
        return None
    figure = charts.points(found, "MiB of all clients and rounds, log scale", "in-domain NLL")
    charts.level(figure, rows[0]["base"]["mean"], "base model")
    caption = "Final in-domain NLL against all bytes, up and down; lower and further left is better."
    return Plot(f"{prefix}-pareto", figure, caption)


def _rounds(rows: list[Record], prefix: str) -> Plot | None:
    if not rows:
        return None
    series = {}
    for row in rows:
        rounds = row["curves"][0]["rounds"]
        means = [sum(c["own"][i] for c in row["curves"]) / len(row["curves"]) for i in range(len(rounds))]
        series[row["label"]] = (rounds, means)
    figure = charts.lines(series, "round", "in-domain NLL", xaxis=charts.rounds_axis(rows[0]["curves"][0]["rounds"]))
    caption = "In-domain NLL by round, mean over seeds; round 0 is the base model."
    return Plot(f"{prefix}-rounds", figure, caption)


def _seconds(rows: list[Record], prefix: str) -> Plot | None:
    if not rows:
        return None
    figure = charts.bars(
        {phase: [row["seconds"][phase]["mean"] for row in rows] for phase in rows[0]["seconds"]},
        [row["label"] for row in rows],
        "",
        "seconds a round, all clients",
        margin={"b": 90},
        legend={"y": -0.35},
    )
    return Plot(f"{prefix}-seconds", figure, "Seconds a round by phase, all clients added up.")


def _sparsity(rows: list[Record], prefix: str) -> list[Plot]:
    """Only where a layer's share is not one constant: how far each layer is from its method's mean."""
    drawn = []
    for factor in ("B", "A"):
        shares = {row["label"]: _shares(row, factor) for row in rows}
        shares = {label: found for label, found in shares.items() if found and _spread(found) > 0.01}
        if not shares:
            continue
        layers = sorted(next(iter(shares.values())), key=lambda name: (len(name), name))
        means = {label: sum(found.values()) / len(found) for label, found in shares.items()}
        values = [[100 * (found[layer] / means[label] - 1) for layer in layers] for label, found in shares.items()]
        most = max(abs(value) for row in values for value in row)
        names = [f"{label} ({means[label]:.1%})" for label in shares]
        scale = {"colorscale": "RdBu", "zmin": -most, "zmax": most}
        figure = charts.heat(values, layers, names, "layer", "method", **scale)
        caption = (
            f"Factor {factor}: how much more or less than the method's mean share (in brackets) of each layer's "
            "changes clients sent, mean over rounds."
        )
        drawn.append(Plot(f"{prefix}-sparsity-{factor}", figure, caption))
    return drawn


def _shares(row: Record, factor: str) -> dict[str, float]:
    """The share of each layer's changes that was sent, mean over seeds."""
    curves = row["curves"]
    keys = [key for key in curves[0]["density"] if key.endswith(f".{factor}")]
    return {
        key.rpartition(".")[0]: sum(curve["density"].get(key, 0.0) for curve in curves) / len(curves) for key in keys
    }


def _spread(found: dict[str, float]) -> float:
    mean = sum(found.values()) / len(found)
    return (max(found.values()) - min(found.values())) / mean if mean else 0.0


def _failed(results: Record) -> Table:
    rows = [
        [row["label"], str(failure["seed"]), tables.last_line(failure["reason"])]
        for row in results["rows"]
        for failure in row["failed"]
    ]
    return Table(["method", "seed", "reason"], rows)

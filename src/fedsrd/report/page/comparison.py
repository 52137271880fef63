"""A comparison's part of the report, from its results.json."""

from pathlib import Path
from typing import Any

from fedsrd.report import comparison as tables
from fedsrd.report.page import charts, html
from fedsrd.runs.results import read_results

Record = dict[str, Any]


def read(path: Path) -> Record:
    """A comparison's results, plain as the tables take them. Raises RunFolderError as `runs.results.read_results`."""
    return read_results(path / "results.json").plain()


def sections(path: Path, prefix: str) -> tuple[str, str]:
    """Title and HTML of a comparison. `prefix` makes the names of its figures unique in the page."""
    results = read(path)
    rows = tables.ordered(results)
    parts = [f'<p class="soft">{len(rows)} methods, seeds {", ".join(map(str, results["seeds"]))}</p>']
    if rows:
        parts += [_pareto(rows, prefix), _quality(results, rows, prefix), _costs(results, rows, prefix)]
        parts.append(_sparsity(rows, prefix))
    parts += [_failed(results), _repeat(path, results)]
    return results["name"], "".join(parts)


def _pareto(rows: list[Record], prefix: str) -> str:
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
        return ""
    figure = charts.points(found, "MiB of all clients and rounds, log scale", "in-domain NLL")
    charts.level(figure, rows[0]["base"]["mean"], "base model")
    caption = "Final in-domain NLL against all bytes, up and down; lower and further left is better."
    return "<h3>Quality against bytes</h3>" + html.figure(f"{prefix}-pareto", figure, caption)


def _quality(results: Record, rows: list[Record], prefix: str) -> str:
    series = {}
    for row in rows:
        rounds = row["curves"][0]["rounds"]
        means = [sum(c["own"][i] for c in row["curves"]) / len(row["curves"]) for i in range(len(rounds))]
        series[row["label"]] = (rounds, means)
    figure = charts.lines(series, "round", "in-domain NLL", xaxis=charts.rounds_axis(rows[0]["curves"][0]["rounds"]))
    parts = [
        "<h3>Quality</h3>",
        html.figure(f"{prefix}-rounds", figure, "In-domain NLL by round, mean over seeds; round 0 is the base model."),
        html.table(*tables.quality_rows(results), "Held-out response NLL, nats a token, mean ± standard deviation"),
    ]
    heads, cells = tables.benchmark_rows(results)
    if heads:
        parts.append(html.table(heads, cells, "Benchmarks"))
    return "".join(parts)


def _costs(results: Record, rows: list[Record], prefix: str) -> str:
    phases = list(rows[0]["seconds"])
    figure = charts.bars(
        {phase: [row["seconds"][phase]["mean"] for row in rows] for phase in phases},
        [row["label"] for row in rows],
        "",
        "seconds a round, all clients",
        margin={"b": 90},
        legend={"y": -0.35},
    )
    return (
        "<h3>Bytes</h3>"
        + html.table(*tables.cost_rows(results), "MiB a client and round, and in all")
        + "<h3>Time</h3>"
        + html.figure(f"{prefix}-seconds", figure, "Seconds a round by phase, all clients added up.")
    )


def _sparsity(rows: list[Record], prefix: str) -> str:
    """Only where a layer's share is not one constant: how far each layer is from its method's mean."""
    parts = []
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
        parts.append(html.figure(f"{prefix}-sparsity-{factor}", figure, caption))
    return "<h3>Sparsity of the uplink</h3>" + "".join(parts) if parts else ""


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


def _failed(results: Record) -> str:
    rows = [
        [row["label"], str(failure["seed"]), tables.last_line(failure["reason"])]
        for row in results["rows"]
        for failure in row["failed"]
    ]
    return "<h3>Failed</h3>" + html.table(["method", "seed", "reason"], rows, texts=(2,)) if rows else ""


def _repeat(path: Path, results: Record) -> str:
    recipe = path / "comparison.toml"
    versions = [[name, version] for name, version in results.get("environment", {}).items()]
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return (
        "<h3>Repeat it</h3>"
        + html.code(f"fedsrd compare {recipe} --out NEW-FOLDER")
        + html.fold("Versions", html.table(["what", "version"], versions))
        + (html.fold("Recipe", html.code(text)) if text else "")
    )

"""What the figures of a comparison show. `rows` are those of `report.comparison.ordered`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsrd.report.figures.figure import MIB, Axis, Chart, Heat, Level, Series, by_number

Record = dict[str, Any]
UNEVEN = 0.01
"""Spread of a method's shares over the layers, relative to their mean, from which on it is worth a figure."""


def pareto(rows: Sequence[Record]) -> Chart | None:
    """Final in-domain NLL against all bytes, each method's mean with its standard deviation over seeds."""
    sent = [row for row in rows if not row["reference"]]
    if not sent:
        return None
    series = [
        Series(
            row["label"],
            [(row["bytes_up"]["mean"] + row["bytes_down"]["mean"]) / MIB],
            [row["own"]["mean"]],
            error=[row["own"]["sd"] or 0.0],
        )
        for row in sent
    ]
    return Chart(
        "points",
        series,
        Axis(
            "bytes of all clients and rounds, up and down (MiB, log scale)",
            "MiB of all clients and rounds, log scale",
            log=True,
        ),
        Axis("final in-domain NLL (nats a token)", "in-domain NLL"),
        title="Quality against bytes: lower left is better",
        levels=[Level(rows[0]["base"]["mean"], "base model")],
        references=[Level(row["in_domain"]["mean"], row["label"]) for row in rows if row["reference"]],
    )


def rounds(rows: Sequence[Record]) -> Chart | None:
    """In-domain NLL after each evaluated round, the mean over seeds; round 0 is the base model."""
    if not rows:
        return None
    series = []
    for row in rows:
        values = list(zip(*(curve["own"] for curve in row["curves"]), strict=True))
        means = [sum(found) / len(found) for found in values]
        band = [(min(found), max(found)) for found in values]
        series.append(Series(row["label"], row["curves"][0]["rounds"], means, band=band, reference=row["reference"]))
    base = rows[0]["base"]["mean"]
    return Chart(
        "lines",
        series,
        Axis("round", whole=True),
        Axis("in-domain NLL (nats a token)", "in-domain NLL"),
        title=f"Quality by round, mean over seeds; base model {base:.3f}; personal models on their own domain",
    )


def sizes(rows: Sequence[Record]) -> Chart | None:
    """Bytes a client and round, up and down; the method that sends least first."""
    sent = sorted(
        (row for row in rows if not row["reference"]), key=lambda r: r["bytes_up"]["mean"] + r["bytes_down"]["mean"]
    )
    if not sent:
        return None
    labels = [row["label"] for row in sent]
    series = [
        Series(name, labels, [row[key]["mean"] / (row["rounds"] * row["clients"]) / MIB for row in sent])
        for name, key in (("up", "bytes_up"), ("down", "bytes_down"))
    ]
    title = "Bytes by method"
    return Chart("bars", series, Axis(""), Axis("MiB a client and round (log scale)", log=True), title=title)


def seconds(rows: Sequence[Record]) -> Chart | None:
    """Seconds a round by phase, all clients added up."""
    if not rows or not rows[0]["seconds"]:
        return None
    labels = [row["label"] for row in rows]
    series = [Series(phase, labels, [row["seconds"][phase]["mean"] for row in rows]) for phase in rows[0]["seconds"]]
    title = "Seconds a round, all clients"
    return Chart("bars", series, Axis(""), Axis("seconds a round, all clients"), title=title, stacked=True)


def sparsity(rows: Sequence[Record]) -> list[Heat]:
    """Share of elements that was sent up, by factor and layer: one map a method that sends only a part."""
    found = {row["label"]: _shares(row) for row in rows if _is_sparse(row)}
    layers = sorted({layer for shares in found.values() for by in shares.values() for layer in by}, key=by_number)
    return [
        Heat(
            [[100 * shares.get(factor, {}).get(layer, 0.0) for layer in layers] for factor in "BA"],
            layers,
            ["B", "A"],
            Axis("layer"),
            Axis("factor"),
            title=label,
        )
        for label, shares in found.items()
    ]


def unevenness(rows: Sequence[Record]) -> dict[str, Heat]:
    """By factor: how far each layer's share is from its method's mean, in percent of that; without the methods whose
    layers are all alike.
    """
    found = {}
    for factor in ("B", "A"):
        shares = {row["label"]: _shares(row).get(factor, {}) for row in rows}
        shares = {label: by_layer for label, by_layer in shares.items() if by_layer and _spread(by_layer) > UNEVEN}
        if not shares:
            continue
        layers = sorted(next(iter(shares.values())), key=by_number)
        means = {label: sum(by_layer.values()) / len(by_layer) for label, by_layer in shares.items()}
        found[factor] = Heat(
            [[100 * (by[layer] / means[label] - 1) for layer in layers] for label, by in shares.items()],
            layers,
            [f"{label} ({means[label]:.1%})" for label in shares],
            Axis("layer"),
            Axis("method"),
            diverging=True,
        )
    return found


def _shares(row: Record) -> dict[str, dict[str, float]]:
    """The share of each factor's and layer's elements that was sent, mean over seeds."""
    curves = row["curves"]
    shares: dict[str, dict[str, float]] = {}
    for key in curves[0]["density"]:
        layer, _, factor = key.rpartition(".")
        shares.setdefault(factor, {})[layer] = sum(curve["density"].get(key, 0.0) for curve in curves) / len(curves)
    return shares


def _is_sparse(row: Record) -> bool:
    found = row["curves"][0]["density"]
    return bool(found) and max(found.values()) < 0.99 and not row["reference"]


def _spread(found: Mapping[str, float]) -> float:
    mean = sum(found.values()) / len(found)
    return (max(found.values()) - min(found.values())) / mean if mean else 0.0

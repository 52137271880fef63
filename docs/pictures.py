"""Draws the pictures of docs/how-it-works.md and results.md: python docs/pictures.py. Stored: pages need no drawing."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

INK, SOFT, CLIENT, SERVER, LOUD = "#1f2933", "#7b8794", "#2f7fc1", "#2a9d6f", "#d1495b"
HERE = Path(__file__).parent / "pictures"


def save(figure: Any, name: str) -> None:
    """Writes one picture, the same bytes every time."""
    HERE.mkdir(exist_ok=True)
    figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def one_round() -> None:
    """Who has what, and what crosses."""
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    axes.axis("off")
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 4)

    def box(x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
        axes.add_patch(pyplot.Rectangle((x, y), w, h, facecolor="white", edgecolor=colour, linewidth=1.6))
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9, color=INK)

    for place, name in enumerate(("hospital", "bank", "lab")):
        box(0.1, 2.75 - 1.25 * place, 3.1, 1.05, f"{name}: its data, the base model,\nB and A", CLIENT)
    box(
        6.6,
        0.9,
        3.2,
        2.2,
        "server: B and A\nno data, no model\n\nreconstruct: mean of full weights\ndecompose: one factor",
        SERVER,
    )
    for place in range(3):
        y = 3.4 - 1.25 * place
        axes.annotate("", (6.5, 2.3), (3.3, y), arrowprops={"arrowstyle": "->", "color": CLIENT})
        axes.annotate("", (3.3, y - 0.3), (6.5, 1.6), arrowprops={"arrowstyle": "->", "color": SERVER, "ls": "--"})
    axes.text(4.9, 3.45, "up: the elements of dB, dA\nthat matter most", ha="center", fontsize=9, color=CLIENT)
    axes.text(4.9, 0.12, "down: one sparse factor,\nthe same for all", ha="center", fontsize=9, color=SERVER)
    save(figure, "round")


def importance() -> None:
    """Why an element's size is not what counts."""
    random = np.random.default_rng(0)
    rows = random.lognormal(0, 0.9, 16)
    delta = random.normal(size=(40, 16))
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3))
    titles = ("dB: what training changed", "norms of A's rows", "importance: their product")
    scores = np.abs(delta) * rows
    for axis, (title, picture) in zip(axes, zip(titles, (np.abs(delta), rows[None], scores), strict=True), strict=True):
        axis.imshow(picture, aspect="auto", cmap="viridis")
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xlabel("rank component", fontsize=9)
        axis.set_yticks([])
    threshold = np.quantile(scores, 0.93)
    kept = np.argwhere(scores > threshold)
    axes[2].scatter(kept[:, 1], kept[:, 0], s=22, facecolors="none", edgecolors=LOUD)
    figure.tight_layout()
    save(figure, "importance")


def payload() -> None:
    """Bits a parameter, one direction (docs/bytes.md: Llama-3.2-3B, rank 64)."""
    parameters = 97_255_424
    names = ["FedAvg, float32", "paper's format", "FedSRD, float32", "FedSRD, int8", "FedSRD, int4"]
    up, down = [371.0, 30.9, 18.0, 7.5, 5.1], [371.0, 43.0, 30.8, 8.8, 4.0]
    figure, axes = pyplot.subplots(figsize=(8, 2.8))
    place = np.arange(len(names))
    for offset, values, label, colour in ((-0.2, up, "up", CLIENT), (0.2, down, "down", SERVER)):
        bits = [value * 2**20 * 8 / parameters for value in values]
        bars = axes.barh(place + offset, bits, 0.38, label=label, color=colour)
        axes.bar_label(bars, [f"{value:g} MiB" for value in values], padding=3, fontsize=8)
    axes.set_yticks(place, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.2, 150)
    axes.set_xlabel("bits a parameter (log scale)", fontsize=9)
    axes.legend(fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, "payload")


def budgets() -> None:
    """What quality costs in bits: every point of the search (benchmarks/search.py), the mean of its seeds."""
    stored = json.loads((HERE.parents[1] / "benchmarks" / "results" / "embedded-search.json").read_text())
    measured = ("in domain", "out of domain", "bits")
    points: dict[Any, list[dict[str, Any]]] = {}
    for row in stored["rows"]:
        key = tuple(value for name, value in row.items() if name not in {*measured, "energy kept", "seed"})
        points.setdefault(key, []).append(row)
    means = [rows[0] | {name: np.mean([row[name] for row in rows]) for name in measured} for rows in points.values()]
    figure, both = pyplot.subplots(1, 2, figsize=(10, 3.6), sharex=True)
    for axes, where in zip(both, measured[:2], strict=True):
        for label, colour in KINDS.items():
            own = [row for row in means if _kind(row) == label]
            axes.scatter([row["bits"] for row in own], [row[where] for row in own], s=14, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("bits a parameter and round, up + down")
        axes.set_ylabel(f"response NLL, {where}")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    both[0].legend(fontsize=8, frameon=False)
    save(figure, "budgets")


KINDS = {"float32": SOFT, "every element, ternary": CLIENT, "cyclic, ternary": LOUD, "B alone, ternary": SERVER}


def _kind(row: dict[str, Any]) -> str:
    if not row["threshold"]:
        return "float32"
    if row["trained"] == "B":
        return "B alone, ternary"
    return "cyclic, ternary" if row["period"] + row["period_a"] > 2 else "every element, ternary"


if __name__ == "__main__":
    with pyplot.rc_context({"svg.hashsalt": "fedsrd", "text.color": INK, "axes.labelcolor": INK}):
        one_round()
        importance()
        payload()
        budgets()

"""A comparison's figures, as PNG and SVG: quality against bytes, quality by round, bytes, seconds, sparsity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsrd.report.comparison import MIB, ordered

Record = dict[str, Any]
INK, QUIET, GRID = "#1f2933", "#7b8794", "#e4e7eb"
LOUD = ("#d1495b", "#1b6ca8", "#2a9d6f", "#c77d0a", "#7a4fb5", "#0f8b8d", "#8c5a3c", "#b3467f")
"""Colours of the first rows of a recipe; whatever comes after them is quiet."""
PANELS = 6


def draw(results: Record, folder: Path) -> list[Path]:
    """Writes every figure that the results have data for into `folder`; gives the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    rows = ordered(results)
    # A row's colour follows from the recipe, not from how well it did.
    labels = [row["label"] for row in results["rows"]]
    colours = {label: LOUD[place] if place < len(LOUD) else QUIET for place, label in enumerate(labels)}
    figures: dict[str, Callable[..., Any]] = {
        "pareto": _pareto,
        "rounds": _rounds,
        "bytes": _bytes,
        "seconds": _seconds,
        "sparsity": _sparsity,
    }
    written = []
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "fedsrd",
        "svg.fonttype": "none",
    }
    with pyplot.rc_context(style):
        for name, make in figures.items():
            figure = make(pyplot, rows, colours)
            if figure is None:
                continue
            for kind in ("png", "svg"):
                file = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(file, dpi=150, bbox_inches="tight", metadata=metadata)
                written.append(file)
            pyplot.close(figure)
    return written


def _pareto(pyplot: Any, rows: Sequence[Record], colours: dict[str, str]) -> Any:
    """Final in-domain NLL against all bytes. Reference points, which send nothing, are lines."""
    sent = [row for row in rows if not row["reference"]]
    if not sent:
        return None
    figure, axes = pyplot.subplots(figsize=(7.6, 4.6))
    points = []
    for row in sent:
        total = (row["bytes_up"]["mean"] + row["bytes_down"]["mean"]) / MIB
        mean, sd = row["own"]["mean"], row["own"]["sd"] or 0.0
        axes.errorbar(total, mean, yerr=sd, fmt="o", color=colours[row["label"]], markersize=6, elinewidth=1)
        points.append((total, mean, row["label"]))
    axes.set_xscale("log")
    axes.set_xlabel("bytes of all clients and rounds, up and down (MiB, log scale)")
    axes.set_ylabel("final in-domain NLL (nats a token)")
    low, high = min(total for total, _, _ in points), max(total for total, _, _ in points)
    axes.set_xlim(low / 1.6, high * 2.6)
    axes.margins(y=0.1)
    _grid(axes)
    values = sorted(mean for _, mean, _ in points)
    limit = values[len(values) // 2] + 4 * (values[len(values) // 2] - values[0])
    if 0 < limit < values[-1]:
        # One that lies far off would press all others together: it is named at the edge.
        far = ", ".join(f"{label} {mean:.2f}" for _, mean, label in points if mean > limit)
        points = [point for point in points if point[1] <= limit]
        axes.set_ylim(values[0] - 0.1 * (limit - values[0]), limit)
        axes.annotate(f"above: {far}", (0.99, 0.97), xycoords="axes fraction", ha="right", color=QUIET, fontsize=8)
    bottom, top = axes.get_ylim()
    for row in rows:
        level = row["in_domain"]["mean"]
        # A reference that lies far away would press everything else together.
        if row["reference"] and abs(level - (bottom + top) / 2) < 0.75 * (top - bottom):
            axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            place = (low / 1.55, level)
            axes.annotate(row["label"], place, xytext=(0, 2), textcoords="offset points", color=QUIET, fontsize=8)
    figure.canvas.draw()
    _label(axes, points, colours)
    axes.set_title("Quality against bytes: lower left is better", loc="left", fontsize=10, pad=12)
    return figure


def _label(axes: Any, points: Sequence[tuple[float, float, str]], colours: dict[str, str]) -> None:
    """Names beside their points, pushed apart upwards or downwards where they would overlap."""
    from matplotlib import patheffects

    taken: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    for x, y, label in sorted(points, key=lambda point: point[1]):
        place_x, place_y = axes.transData.transform((x, y))
        shift = 0.0
        tried = iter(step * sign for step in range(0, 400, 2) for sign in (1, -1))
        while any(abs(place_y + shift - other_y) < 15 and abs(place_x - other_x) < 120 for other_x, other_y in taken):
            shift = float(next(tried))
        taken.append((place_x, place_y + shift))
        axes.annotate(
            label,
            (x, y),
            xytext=(12, shift * scale - 3),
            textcoords="offset points",
            color=colours[label],
            fontsize=8,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": GRID, "shrinkA": 0, "shrinkB": 3} if abs(shift) > 8 else None,
        )


def _rounds(pyplot: Any, rows: Sequence[Record], colours: dict[str, str]) -> Any:
    """In-domain NLL after each evaluated round."""
    if not rows or len(rows[0]["curves"][0]["rounds"]) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(7.6, 4.2))
    ends = []
    for row in rows:
        curve = row["curves"][0]
        means = [sum(values) / len(values) for values in zip(*(c["own"] for c in row["curves"]), strict=True)]
        axes.plot(
            curve["rounds"],
            means,
            color=colours[row["label"]],
            marker="o",
            markersize=3,
            linewidth=1.4 if colours[row["label"]] != QUIET else 0.9,
            linestyle="--" if row["reference"] else "-",
        )
        ends.append((float(curve["rounds"][-1]), means[-1], row["label"]))
    axes.set_xlabel("round")
    axes.set_ylabel("in-domain NLL (nats a token)")
    axes.set_xlim(rows[0]["curves"][0]["rounds"][1] * 0.9, ends[0][0] * 1.15)
    # The first rounds gain most: from the first evaluated one on, so that the methods can be told apart.
    shown = [curve["own"][1:] for row in rows for curve in row["curves"]]
    low, high = min(map(min, shown)), max(map(max, shown))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xticks(rows[0]["curves"][0]["rounds"][1:])
    _grid(axes)
    figure.canvas.draw()
    _label(axes, ends, colours)
    base = rows[0]["base"]["mean"]
    title = f"Quality by round, mean over seeds; base model {base:.3f}; personal models on their own domain"
    axes.set_title(title, loc="left", fontsize=10)
    return figure


def _bytes(pyplot: Any, rows: Sequence[Record], colours: dict[str, str]) -> Any:
    """Bytes a client and round, up and down."""
    sent = sorted(
        (row for row in rows if not row["reference"]), key=lambda r: r["bytes_up"]["mean"] + r["bytes_down"]["mean"]
    )
    if not sent:
        return None
    figure, axes = pyplot.subplots(figsize=(7.6, 0.6 + 0.32 * len(sent)))
    for place, row in enumerate(reversed(sent)):
        turns = row["rounds"] * row["clients"]
        up, down = (row[key]["mean"] / turns / MIB for key in ("bytes_up", "bytes_down"))
        axes.barh(place + 0.19, up, 0.36, color=LOUD[0], label="up" if place == 0 else None)
        axes.barh(place - 0.19, down, 0.36, color=LOUD[1], label="down" if place == 0 else None)
        axes.annotate(
            f"{up:.2f} + {down:.2f}", (max(up, down), place), xytext=(5, -3), textcoords="offset points", fontsize=8
        )
    axes.set_yticks(range(len(sent)), [row["label"] for row in reversed(sent)])
    axes.set_xscale("log")
    axes.set_xlabel("MiB a client and round (log scale)")
    axes.margins(x=0.2)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.set_title("Bytes by method", loc="left", fontsize=10)
    return figure


def _seconds(pyplot: Any, rows: Sequence[Record], colours: dict[str, str]) -> Any:
    """Seconds a round by phase: with training, and the rest alone."""
    if not rows or not rows[0]["seconds"]:
        return None
    phases = list(rows[0]["seconds"])
    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 0.8 + 0.3 * len(rows)), sharey=True)
    for axes, shown, title in (
        (panels[0], phases, "Seconds a round, all clients"),
        (panels[1], [phase for phase in phases if phase != "train"], "Without training"),
    ):
        for place, row in enumerate(reversed(rows)):
            left = 0.0
            for phase in shown:
                width = row["seconds"][phase]["mean"]
                axes.barh(
                    place, width, 0.7, left=left, color=LOUD[phases.index(phase)], label=phase if place == 0 else None
                )
                left += width
        axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("seconds")
        axes.xaxis.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    panels[0].legend(frameon=False, ncols=len(phases), loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8)
    return figure


def _sparsity(pyplot: Any, rows: Sequence[Record], colours: dict[str, str]) -> Any:
    """Uplink density by layer and factor of the rows that send only a part, as heat maps."""
    sparse = [row for row in rows if _is_sparse(row)][:PANELS]
    if not sparse:
        return None
    layers = sorted({key.rpartition(".")[0] for row in sparse for key in row["curves"][0]["density"]}, key=_by_number)
    figure, panels = pyplot.subplots(
        len(sparse), 1, figsize=(7.6, 0.6 + 0.75 * len(sparse)), squeeze=False, sharex=True, layout="constrained"
    )
    grids = []
    for row in sparse:
        density = {
            key: sum(curve["density"].get(key, 0.0) for curve in row["curves"]) / len(row["curves"])
            for key in row["curves"][0]["density"]
        }
        grids.append([[100 * density.get(f"{layer}.{factor}", 0.0) for layer in layers] for factor in "BA"])
    for axes, row, grid in zip(panels[:, 0], sparse, grids, strict=True):
        # Each on its own scale: what differs within a method is smaller than what differs between them.
        low, high = min(map(min, grid)), max(map(max, grid))
        image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=low - 0.05, vmax=high + 0.05)
        figure.colorbar(image, ax=axes, pad=0.01)
        axes.set_yticks([0, 1], ["B", "A"])
        axes.set_title(row["label"], loc="left", fontsize=9)
    steps = range(0, len(layers), max(len(layers) // 15, 1))
    panels[-1, 0].set_xticks(list(steps), [layers[step] for step in steps])
    panels[-1, 0].set_xlabel("layer")
    figure.suptitle("Share of elements sent up, in %, by layer and factor", x=0.01, ha="left", fontsize=10)
    return figure


def _is_sparse(row: Record) -> bool:
    found = row["curves"][0]["density"]
    return bool(found) and max(found.values()) < 0.99 and not row["reference"]


def _by_number(layer: str) -> tuple[int, str]:
    return (int(layer), "") if layer.isdecimal() else (-1, layer)


def _grid(axes: Any) -> None:
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)

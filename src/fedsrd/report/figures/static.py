"""A comparison's figures as PNG and SVG, by matplotlib."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from fedsrd.files import write_atomically
from fedsrd.report.comparison import ordered
from fedsrd.report.figures import comparison
from fedsrd.report.figures.figure import Chart, Heat, Series

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
    results = _literal(results)
    rows = ordered(results)
    # A row's colour follows from the recipe, not from how well it did.
    labels = [row["label"] for row in results["rows"]]
    colours = {label: LOUD[place] if place < len(LOUD) else QUIET for place, label in enumerate(labels)}
    figures: dict[str, tuple[Any, Callable[..., Any]]] = {
        "pareto": (comparison.pareto(rows), _pareto),
        "rounds": (comparison.rounds(rows), _rounds),
        "bytes": (comparison.sizes(rows), _bars),
        "seconds": (comparison.seconds(rows), _seconds),
        "sparsity": (comparison.sparsity(rows)[:PANELS], _sparsity),
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
        for name, (shown, make) in figures.items():
            figure = make(pyplot, shown, colours) if shown else None
            if figure is None:
                continue
            for kind in ("png", "svg"):
                file = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                drawn = BytesIO()
                figure.savefig(drawn, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
                write_atomically(file, drawn.getvalue())
                written.append(file)
            pyplot.close(figure)
    return written


def _literal(tree: Any) -> Any:
    """The tree with every name as it is to be shown: between two dollar signs matplotlib reads formulas."""
    if isinstance(tree, dict):
        return {_literal(key): _literal(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_literal(value) for value in tree]
    return tree.replace("$", r"\$") if isinstance(tree, str) else tree


def _pareto(pyplot: Any, chart: Chart, colours: dict[str, str]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.6, 4.6))
    points = [(float(series.x[0]), _number(series.y[0]), series.name) for series in chart.series]
    for series in chart.series:
        axes.errorbar(
            series.x, series.y, yerr=series.error, fmt="o", color=colours[series.name], markersize=6, elinewidth=1
        )
    axes.set_xscale("log")
    axes.set_xlabel(chart.x.title)
    axes.set_ylabel(chart.y.title)
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
    for level in chart.references:
        # One that lies far away would press everything else together.
        if abs(level.value - (bottom + top) / 2) < 0.75 * (top - bottom):
            axes.axhline(level.value, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            place = (low / 1.55, level.value)
            axes.annotate(level.name, place, xytext=(0, 2), textcoords="offset points", color=QUIET, fontsize=8)
    figure.canvas.draw()
    _label(axes, points, colours)
    axes.set_title(chart.title, loc="left", fontsize=10, pad=12)
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


def _rounds(pyplot: Any, chart: Chart, colours: dict[str, str]) -> Any:
    numbers = [float(place) for place in chart.series[0].x]
    if len(numbers) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(7.6, 4.2))
    ends = []
    for series in chart.series:
        colour = colours[series.name]
        axes.plot(
            series.x,
            series.y,
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.4 if colour != QUIET else 0.9,
            linestyle="--" if series.reference else "-",
        )
        ends.append((float(series.x[-1]), _number(series.y[-1]), series.name))
    axes.set_xlabel(chart.x.title)
    axes.set_ylabel(chart.y.title)
    axes.set_xlim(numbers[1] * 0.9, ends[0][0] * 1.15)
    # The first rounds gain most: from the first evaluated one on, so that the methods can be told apart.
    shown = [bounds for series in chart.series for bounds in series.band[1:]]
    low, high = min(low for low, _ in shown), max(high for _, high in shown)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_xticks(list(chart.series[0].x[1:]))
    _grid(axes)
    figure.canvas.draw()
    _label(axes, ends, colours)
    axes.set_title(chart.title, loc="left", fontsize=10)
    return figure


def _bars(pyplot: Any, chart: Chart, colours: dict[str, str]) -> Any:
    """Two series side by side, lying; the first category on top."""
    names = list(chart.series[0].x)
    figure, axes = pyplot.subplots(figsize=(7.6, 0.6 + 0.32 * len(names)))
    places = range(len(names) - 1, -1, -1)
    for series, shift, colour in zip(chart.series, (0.19, -0.19), LOUD, strict=False):
        axes.barh([place + shift for place in places], series.y, 0.36, color=colour, label=series.name)
    for place, values in zip(places, zip(*(series.y for series in chart.series), strict=True), strict=True):
        text = " + ".join(f"{value:.2f}" for value in values)
        axes.annotate(text, (max(values), place), xytext=(5, -3), textcoords="offset points", fontsize=8)
    axes.set_yticks(places, names)
    axes.set_xscale("log" if chart.y.log else "linear")
    axes.set_xlabel(chart.y.title)
    axes.margins(x=0.2)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.set_title(chart.title, loc="left", fontsize=10)
    return figure


def _seconds(pyplot: Any, chart: Chart, colours: dict[str, str]) -> Any:
    """Bars that lie on each other, twice: with training, and the rest alone."""
    names = list(chart.series[0].x)
    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 0.8 + 0.3 * len(names)), sharey=True)
    coloured = list(zip(chart.series, LOUD, strict=False))
    rest = [(series, colour) for series, colour in coloured if series.name != "train"]
    for axes, shown, title in ((panels[0], coloured, chart.title), (panels[1], rest, "Without training")):
        _stack(axes, shown)
        axes.set_yticks(range(len(names)), names[::-1])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("seconds")
        axes.xaxis.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    panels[0].legend(frameon=False, ncols=len(coloured), loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8)
    return figure


def _stack(axes: Any, shown: Sequence[tuple[Series, str]]) -> None:
    lefts = [0.0] * len(shown[0][0].x)
    places = range(len(lefts) - 1, -1, -1)
    for series, colour in shown:
        axes.barh(places, series.y, 0.7, left=lefts, color=colour, label=series.name)
        lefts = [left + _number(width) for left, width in zip(lefts, series.y, strict=True)]


def _sparsity(pyplot: Any, maps: Sequence[Heat], colours: dict[str, str]) -> Any:
    figure, panels = pyplot.subplots(
        len(maps), 1, figsize=(7.6, 0.6 + 0.75 * len(maps)), squeeze=False, sharex=True, layout="constrained"
    )
    for axes, heat in zip(panels[:, 0], maps, strict=True):
        # Each on its own scale: what differs within a method is smaller than what differs between them.
        values = [_number(value) for row in heat.values for value in row]
        image = axes.imshow(
            heat.values, aspect="auto", cmap="viridis", vmin=min(values) - 0.05, vmax=max(values) + 0.05
        )
        figure.colorbar(image, ax=axes, pad=0.01)
        axes.set_yticks(range(len(heat.rows)), heat.rows)
        axes.set_title(heat.title, loc="left", fontsize=9)
    columns = maps[-1].columns
    steps = range(0, len(columns), max(len(columns) // 15, 1))
    panels[-1, 0].set_xticks(list(steps), [columns[step] for step in steps])
    panels[-1, 0].set_xlabel(maps[-1].x.title)
    figure.suptitle("Share of elements sent up, in %, by layer and factor", x=0.01, ha="left", fontsize=10)
    return figure


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _grid(axes: Any) -> None:
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)

"""Figures as plotly.js draws them in the page. Colours that both light and dark bear; the page sets the rest."""

import html
import math
from collections.abc import Sequence
from typing import Any

from fedsrd.report.figures.figure import Axis, Chart, Heat, Level, Series

Plotly = dict[str, Any]
"""What plotly.js draws: "data" and "layout"."""
COLOURS = ("#d1495b", "#2f7fc1", "#2a9d6f", "#c77d0a", "#8a63c9", "#0f9b9d", "#a5694f", "#c2559a", "#6b8e23", "#7b8794")
QUIET = "#7b8794"
LARGEST = 1e100
"""What is drawn. plotly.js adds, multiplies and spreads axes, and must not overflow at that."""


def draw(figure: Chart | Heat) -> Plotly:
    """The "data" and "layout" of plotly.js. `references` are left out: the page's tables have them.

    What is no finite number, or is too large for plotly.js to compute with, is a gap.
    """
    found: Plotly = _with_gaps(_heat(figure) if isinstance(figure, Heat) else _chart(figure))
    return found


def _chart(figure: Chart) -> Plotly:
    traces = {"points": _points, "lines": _lines, "bars": _bars}[figure.kind](figure)
    layout = _layout(figure.x, figure.y)
    if figure.kind == "points":
        layout["showlegend"] = False
    if figure.kind == "bars":
        layout["barmode"] = "stack" if figure.stacked else "group"
        if any(isinstance(place, str) for series in figure.series for place in series.x):
            # Names of categories stand aslant and need room.
            layout["margin"]["b"] = 90
            layout["legend"]["y"] = -0.35
    if figure.x.whole:
        places = [float(place) for series in figure.series for place in series.x]
        last = max((place for place in places if _can_be_drawn(place)), default=1.0)
        layout["xaxis"] |= {"dtick": max(1, round(last / 10)), "tick0": 0}
    for level in figure.levels:
        if _can_be_drawn(level.value, figure.y.log):
            _across(layout, level, figure.y)
    return {"data": traces, "layout": layout}


def _can_be_drawn(value: float, log: bool = False) -> bool:
    return abs(value) <= LARGEST and (value > 0 or not log)


def _with_gaps(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _with_gaps(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_gaps(value) for value in tree]
    return None if isinstance(tree, int | float) and not _can_be_drawn(tree) else tree


def plain(text: object) -> str:
    """Text that plotly.js shows as it is: it would read tags, entities and %{...} in names.

    >>> plain("<b>R&D</b>")
    '&lt;b&gt;R&amp;D&lt;/b&gt;'
    """
    return html.escape(str(text), quote=False).replace("%{", "%&#123;")


def _layout(x: Axis, y: Axis) -> Plotly:
    def axis(one: Axis) -> Plotly:
        return {"title": {"text": plain(one.short or one.title)}, **({"type": "log"} if one.log else {})}

    return {
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "xaxis": axis(x),
        "yaxis": axis(y),
        "legend": {"orientation": "h", "y": -0.2, "x": 0},
        "hovermode": "closest",
    }


def _across(layout: Plotly, level: Level, axis: Axis) -> None:
    """A line across at one height, named at its right end."""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level.value, "y1": level.value}
    layout["shapes"] = [*layout.get("shapes", []), {**across, "line": {"color": QUIET, "dash": "dash", "width": 1}}]
    note = {"xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    height = math.log10(level.value) if axis.log else level.value
    note |= {"text": plain(level.name), "y": height, "font": {"size": 11}}
    layout["annotations"] = [*layout.get("annotations", []), note]


def _trace(series: Series, **more: Any) -> Plotly:
    places = [plain(place) if isinstance(place, str) else place for place in series.x]
    return {"name": plain(series.name), "x": places, "y": list(series.y), **more}


def _lines(figure: Chart) -> list[Plotly]:
    return [
        _trace(
            series,
            type="scatter",
            mode="lines+markers",
            # After all colours, the same ones again with dots.
            line={
                "color": COLOURS[place % len(COLOURS)],
                "width": 2,
                "dash": "solid" if place < len(COLOURS) else "dot",
            },
            marker={"size": 6},
            hovertemplate=f"{plain(series.name)}: %{{y:.4g}}<extra></extra>",
        )
        for place, series in enumerate(figure.series)
    ]


def _bars(figure: Chart) -> list[Plotly]:
    return [
        _trace(
            series,
            type="bar",
            marker={"color": COLOURS[place % len(COLOURS)]},
            hovertemplate=f"{plain(series.name)}: %{{y:.3g}}<extra></extra>",
        )
        for place, series in enumerate(figure.series)
    ]


def _points(figure: Chart) -> list[Plotly]:
    """Names that would lie on others show on hover only."""
    places = [(float(series.x[0]), series.y[0] or 0.0) for series in figure.series]
    drawn = [n for n, (x, y) in enumerate(places) if _can_be_drawn(x, figure.x.log) and _can_be_drawn(y)]
    apart = _apart([(math.log10(places[n][0]) if figure.x.log else places[n][0], places[n][1]) for n in drawn])
    shown = {n for n, free in zip(drawn, apart, strict=True) if free}
    x, y = (plain(axis.short or axis.title) for axis in (figure.x, figure.y))
    return [
        _trace(
            series,
            type="scatter",
            mode="markers+text",
            error_y={"type": "data", "array": list(series.error or ()), "thickness": 1, "width": 3},
            text=[plain(series.name) if place in shown else ""],
            textposition="top center",
            textfont={"size": 10},
            marker={"size": 10, "color": COLOURS[place % len(COLOURS)]},
            hovertemplate=f"<b>{plain(series.name)}</b><br>{x}: %{{x:.3g}}<br>{y}: %{{y:.4g}}<extra></extra>",
        )
        for place, series in enumerate(figure.series)
    ]


def _apart(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Which places have room for a name, first come, first served."""
    spans = [max(max(axis) - min(axis), 1e-9) for axis in zip(*places, strict=True)]
    taken: list[tuple[float, float]] = []
    shown = []
    for across, height in places:
        free = all(abs(across - a) / spans[0] > 0.08 or abs(height - h) / spans[1] > 0.05 for a, h in taken)
        shown.append(free)
        if free:
            taken.append((across, height))
    return shown


def _heat(figure: Heat) -> Plotly:
    x, y = plain(figure.x.title), plain(figure.y.title)
    trace: Plotly = {
        "type": "heatmap",
        "z": [list(row) for row in figure.values],
        "x": [plain(name) if isinstance(name, str) else name for name in figure.columns],
        "y": [plain(name) for name in figure.rows],
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
        "hovertemplate": f"{x} %{{x}}, {y} %{{y}}: %{{z:.2f}} %<extra></extra>",
    }
    if figure.diverging:
        values = [abs(value) for row in figure.values for value in row if value is not None]
        most = max((value for value in values if _can_be_drawn(value)), default=1.0)
        trace |= {"colorscale": "RdBu", "zmin": -most, "zmax": most}
    layout = _layout(figure.x, figure.y)
    layout["margin"]["r"] = 4
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
    return {"data": [trace], "layout": layout}

"""The report's figures, as plotly.js draws them. Colours that both light and dark bear; the page sets the rest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Figure = dict[str, Any]
COLOURS = ("#d1495b", "#2f7fc1", "#2a9d6f", "#c77d0a", "#8a63c9", "#0f9b9d", "#a5694f", "#c2559a", "#6b8e23", "#7b8794")
MIB = 1 << 20


def _layout(x: str, y: str, **more: Any) -> Figure:
    layout: Figure = {
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "legend": {"orientation": "h", "y": -0.2, "x": 0},
        "hovermode": "closest",
    }
    for key, value in more.items():
        layout[key] = {**layout.get(key, {}), **value} if isinstance(value, dict) else value
    return layout


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float | None]]], x: str, y: str, **more: Any) -> Figure:
    """One line a name, through its points."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(xs),
            "y": list(ys),
            # After all colours, the same ones again with dots.
            "line": {
                "color": COLOURS[place % len(COLOURS)],
                "width": 2,
                "dash": "solid" if place < len(COLOURS) else "dot",
            },
            "marker": {"size": 6},
            "hovertemplate": f"{name}: %{{y:.4g}}<extra></extra>",
        }
        for place, (name, (xs, ys)) in enumerate(series.items())
    ]
    return {"data": data, "layout": _layout(x, y, **more)}


def level(figure: Figure, value: float, label: str) -> Figure:
    """A line across at one height, named at its right end."""
    layout = figure["layout"]
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    layout["shapes"] = [*layout.get("shapes", []), {**across, "line": {"color": "#7b8794", "dash": "dash", "width": 1}}]
    logarithmic = layout["yaxis"].get("type") == "log"
    note = {"xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom", "showarrow": False, "text": label}
    height = math.log10(value) if logarithmic else value
    layout["annotations"] = [*layout.get("annotations", []), {**note, "y": height, "font": {"size": 11}}]
    return figure


def bars(series: Mapping[str, Sequence[float]], xs: Sequence[Any], x: str, y: str, **more: Any) -> Figure:
    """Stacked bars: one colour a name."""
    data = [
        {
            "type": "bar",
            "name": name,
            "x": list(xs),
            "y": list(values),
            "marker": {"color": COLOURS[place % len(COLOURS)]},
            "hovertemplate": f"{name}: %{{y:.3g}}<extra></extra>",
        }
        for place, (name, values) in enumerate(series.items())
    ]
    return {"data": data, "layout": _layout(x, y, barmode="stack", **more)}


def points(found: Sequence[tuple[str, float, float, float]], x: str, y: str) -> Figure:
    """Points that name themselves: (name, x, y, spread of y). Names that would lie on others show on hover only."""
    shown = _apart([(math.log10(across), height) for _, across, height, _ in found])
    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": name,
            "x": [across],
            "y": [height],
            "error_y": {"type": "data", "array": [spread], "thickness": 1, "width": 3},
            "text": [name if shown[place] else ""],
            "textposition": "top center",
            "textfont": {"size": 10},
            "marker": {"size": 10, "color": COLOURS[place % len(COLOURS)]},
            "hovertemplate": f"<b>{name}</b><br>{x}: %{{x:.3g}}<br>{y}: %{{y:.4g}}<extra></extra>",
        }
        for place, (name, across, height, spread) in enumerate(found)
    ]
    return {"data": data, "layout": _layout(x, y, xaxis={"type": "log"}, showlegend=False)}


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


def rounds_axis(numbers: Sequence[int]) -> Figure:
    """Ticks at whole rounds."""
    return {"dtick": max(1, round(max(numbers, default=1) / 10)), "tick0": 0}


def heat(
    values: Sequence[Sequence[float | None]], xs: Sequence[Any], ys: Sequence[Any], x: str, y: str, **more: Any
) -> Figure:
    """A heat map of percentages; `more` goes to the trace."""
    data = [
        {
            "type": "heatmap",
            "z": [list(row) for row in values],
            "x": list(xs),
            "y": list(ys),
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "%"}, "thickness": 12},
            "hovertemplate": f"{x} %{{x}}, {y} %{{y}}: %{{z:.2f}} %<extra></extra>",
            **more,
        }
    ]
    return {
        "data": data,
        "layout": _layout(x, y, margin={"r": 4}, xaxis={"type": "category"}, yaxis={"type": "category"}),
    }

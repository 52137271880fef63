"""What a figure shows, whoever draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: what it measures, with the unit.
        short: the same for narrow places; empty for the title.
        log: logarithmic.
        whole: only whole numbers have ticks.
    """

    title: str
    short: str = ""
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Series:
    """What one name has in a figure.

    Attributes:
        name: of the series.
        x: places; names of categories in a bar chart.
        y: as many values; None is a gap.
        error: standard deviation of each value, for error bars.
        band: lowest and highest of the runs that each value is the mean of.
        reference: of a method that sends nothing and only gives a bound.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float | None]
    error: Sequence[float] | None = None
    band: Sequence[tuple[float, float]] = ()
    reference: bool = False


@dataclass(frozen=True)
class Level:
    """A line across at one value of the y axis."""

    value: float
    name: str


@dataclass(frozen=True)
class Chart:
    """Series over two axes.

    Attributes:
        kind: how they are drawn; points have one place each and name themselves.
        series: in the order of the legend.
        x: of places, or of a bar chart's categories.
        y: of values.
        title: the headline, where the figure stands alone.
        levels: lines across.
        references: lines across that give way where they lie far from the series, or where a table has them.
        stacked: bars stand on each other, not side by side.
    """

    kind: Literal["points", "lines", "bars"]
    series: Sequence[Series]
    x: Axis
    y: Axis
    title: str = ""
    levels: Sequence[Level] = ()
    references: Sequence[Level] = ()
    stacked: bool = False


@dataclass(frozen=True)
class Heat:
    """A heat map of percentages.

    Attributes:
        values: by row and column; None is a gap.
        columns: names, left to right.
        rows: names.
        x: what columns are.
        y: what rows are.
        title: the headline, where the figure stands alone.
        diverging: values are differences: the scale is symmetric about 0.
    """

    values: Sequence[Sequence[float | None]]
    columns: Sequence[float] | Sequence[str]
    rows: Sequence[str]
    x: Axis
    y: Axis
    title: str = ""
    diverging: bool = False


def by_number(layer: str) -> tuple[int, str]:
    """Sorts layers by their number; what lies in none comes first.

    >>> sorted(["10", "-", "9"], key=by_number)
    ['-', '9', '10']
    """
    return (int(layer), "") if layer.isdecimal() else (-1, layer)

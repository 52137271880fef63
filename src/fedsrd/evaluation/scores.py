"""Scores as people compare them: one number a benchmark, averages in and out of domain, one table of all subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsrd.means import domain_means

Unit = Literal["nats", "%"]


@dataclass(frozen=True)
class Score:
    """One subject's score on one benchmark.

    Attributes:
        name: of the benchmark.
        title: for people.
        domain: code, medical, finance, math, general or law.
        in_domain: whether a specialist trains on the domain.
        unit: nats a token (less is better), or percent (more is better).
        value: the score.
        stderr: its standard error; None where unknown.
        examples: how many it comes from.
    """

    name: str
    title: str
    domain: str
    in_domain: bool
    unit: Unit
    value: float
    stderr: float | None
    examples: int


def averages(scores: Sequence[Score]) -> dict[str, float]:
    """Means over benchmarks, in and out of domain, of each unit: "in-domain %", "out-of-domain nats", ...

    >>> averages([Score("a", "A", "code", True, "%", 10.0, None, 5), Score("b", "B", "math", True, "%", 20.0, None, 5)])
    {'in-domain %': 15.0}
    """
    found = {}
    for unit in ("nats", "%"):
        of_unit = [score for score in scores if score.unit == unit]
        means = domain_means(
            {score.name: score.value for score in of_unit}, {score.name: score.in_domain for score in of_unit}
        )
        for value, label in ((means.in_domain, "in-domain"), (means.out_of_domain, "out-of-domain")):
            if value is not None:
                found[f"{label} {unit}"] = value
    return found


def table(scores: Mapping[str, Sequence[Score]]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: a line a benchmark, a column a subject, and the averages below.

    Args:
        scores: of every subject, by its name; the first one is what the others are compared with.
    """
    subjects = list(scores)
    first = {name: {score.name: score for score in found} for name, found in scores.items()}
    order = list(dict.fromkeys(score.name for found in scores.values() for score in found))
    facts = {score.name: score for found in scores.values() for score in found}
    lines = []
    for name in order:
        fact = facts[name]
        where = fact.domain if fact.in_domain else f"{fact.domain} (out)"
        cells = [_cell(first[subject].get(name)) for subject in subjects]
        lines.append([fact.title, where, _unit(fact.unit), str(fact.examples), *cells])
    means = {subject: averages(found) for subject, found in scores.items()}
    for label in dict.fromkeys(label for found in means.values() for label in found):
        where, _, unit = label.partition(" ")
        cells = [_mean(means[subject].get(label), unit) for subject in subjects]
        lines.append([f"mean {where}", "", _unit(unit), "", *cells])
    return ["benchmark", "domain", "unit", "n", *subjects], lines


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The table for a page."""
    rule = ["---" if place < 3 else "---:" for place in range(len(heads))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *lines))


def as_json(scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """The same as plain data."""
    return {
        subject: {"scores": {score.name: vars(score) for score in found}, "averages": averages(found)}
        for subject, found in scores.items()
    }


def _unit(unit: str) -> str:
    return "nats ↓" if unit == "nats" else "% ↑"


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    digits = 3 if score.unit == "nats" else 1
    error = "" if score.stderr is None else f" ± {score.stderr:.{digits}f}"
    return f"{score.value:.{digits}f}{error}"


def _mean(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.{3 if unit == 'nats' else 1}f}"

"""Means of what was measured, in and out of domain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DomainMeans:
    """Means over evaluation sets or benchmarks.

    Attributes:
        in_domain: of those that a client or specialist trains for; None where there are none.
        out_of_domain: of the others; None where there are none.
    """

    in_domain: float | None
    out_of_domain: float | None


def domain_means(values: Mapping[str, float], in_domain: Mapping[str, bool]) -> DomainMeans:
    """Means of the values in and out of domain.

    Args:
        values: by name.
        in_domain: whether each name is in domain; a name without a value is left out.

    >>> domain_means({"code": 1.0, "law": 4.0, "math": 2.0}, {"code": True, "math": True, "law": False})
    DomainMeans(in_domain=1.5, out_of_domain=4.0)
    """
    inside, outside = (
        mean(values[name] for name, inside in in_domain.items() if inside == wanted and name in values)
        for wanted in (True, False)
    )
    return DomainMeans(inside, outside)


def mean(values: Iterable[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else None

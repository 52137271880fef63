"""Who masks with whom."""

from collections.abc import Sequence
from dataclasses import dataclass

COMPLETE_BELOW = 32


@dataclass(frozen=True)
class Graph:
    """Neighbourhoods of one session.

    Attributes:
        names: all clients with keys, sorted.
        order: the same, around the circle.
        degree: neighbours of each.
        threshold: shares of a client's secret that give it; of the degree + 1 that there are (one is its own).
    """

    names: tuple[str, ...]
    order: tuple[str, ...]
    degree: int
    threshold: int

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds shares of this client's secrets: itself and its neighbours, sorted; point i + 1 is the i-th's."""
        if self.degree == len(self.names) - 1:
            return self.names
        raise NotImplementedError


def graph(names: Sequence[str], threshold: int, context: bytes) -> Graph:
    """The graph that follows from the roster: complete below 32 clients.

    Args:
        names: clients with keys.
        threshold: of the session.
        context: `context_of(session, roster)`.
    """
    ordered = tuple(sorted(names))
    return Graph(ordered, ordered, len(ordered) - 1, threshold)

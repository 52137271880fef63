"""Which of a round's updates count, and for how much: by their size, by what they are copies of, by who has how many
examples, and by whether the round closes with them.

An update that is finite may still be absurd: 1e30 in one element makes every client's model useless, whatever the
others sent. Its Frobenius norm is compared with a reference, and where it is more than `times` that, it is left out:

- three updates or more that say anything: the median of their norms;
- fewer: the median of the client's own last accepted norms; of a client that has none, the median of the others'; where
  nobody has any, the other update's norm, or, of one alone, a change of 1 in every element.

No reference is above `times` what the others had accepted before, or where there is nothing before, above a change of 1
in every element: neither a majority nor patience makes an absurd size usual.

Of fewer than three, whatever the history says, an update no larger than the state that it changes is not absurd; of a
client that has no accepted norms yet, or whose usual one is larger than the state, none within a change of 1 in every
element is. States grow, and else a client that sends next to nothing could have all others left out.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedsrd.core.tensors import Delta, Tensors
from fedsrd.errors import FederationError

RECENT = 10
"""How many accepted norms of each client are remembered."""
Closed = TypeVar("Closed")


class History:
    """The norms of each client's last accepted updates. Decisions depend on it, so it belongs to the checkpoint."""

    def __init__(self) -> None:
        self._norms: dict[str, list[float]] = {}

    def append(self, norms: Mapping[str, float]) -> None:
        """Remembers a closed round's accepted norms. A norm of zero says nothing of what is usual."""
        for client, norm in norms.items():
            if norm > 0:
                self._norms[client] = [*self._norms.get(client, []), norm][-RECENT:]

    def usual(self) -> dict[str, float]:
        """The median norm of each client that has any."""
        return {client: statistics.median(norms) for client, norms in self._norms.items()}

    def contents(self) -> dict[str, list[float]]:
        """Everything, for a checkpoint: oldest first, by client."""
        return {client: list(norms) for client, norms in self._norms.items()}

    def restore(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Takes a checkpoint's contents."""
        self._norms = {client: list(found)[-RECENT:] for client, found in norms.items()}


@dataclass(frozen=True, slots=True)
class NormBound:
    """The rule above.

    Attributes:
        times: how many times its reference an update's norm may be.
        state: norm of the state that is changed.
        elements: of an update.
    """

    times: float
    state: float
    elements: int

    def oversized(self, clients: Sequence[str], norms: Sequence[float], history: History) -> dict[int, str]:
        """The places of the updates to leave out, and why; `norms` are finite."""
        usual = history.usual()
        some = [norm for norm in norms if norm > 0]
        found = {}
        for place, (client, norm) in enumerate(zip(clients, norms, strict=True)):
            reference, what = self._reference(client, some, usual)
            bound = self.times * reference
            if len(some) < 3:
                own = usual.get(client)
                large = own is None or own > self.state
                bound = max(bound, self._plausible if large else self.state)
            if norm > bound:
                above = f"more than {self.times:g} times {what} {reference:.3g}"
                found[place] = f"its norm {norm:.3g} is {above} (participation.norm_bound)"
        return found

    @property
    def _plausible(self) -> float:
        """Norm of a change of 1 in every element, and at least the state's."""
        return math.hypot(self.state, math.sqrt(self.elements))

    def _reference(self, client: str, some: Sequence[float], usual: Mapping[str, float]) -> tuple[float, str]:
        """What an update's norm is compared with, and how that is called."""
        own = usual.get(client)
        known = [norm for name, norm in usual.items() if name != client]
        others = statistics.median(known) if known else None
        plausible = self._plausible, "a change of 1 in every element,"
        before = own if others is None else others
        ceiling = plausible
        if before is not None:
            ceiling = max(self.times * before, self.state), "what was usual before allows,"
        if len(some) >= 3:
            reference = statistics.median(some), "the round's median"
        elif own is not None:
            reference = own, "the median of its own accepted updates,"
        elif others is not None:
            reference = others, "the median of the others' accepted updates,"
        elif len(some) == 2:
            reference = min(some), "the round's other update,"
        else:
            reference = plausible
        return min(reference, ceiling)


def norm_of_delta(delta: Delta) -> float:
    """Frobenius norm of a whole update."""
    return _norm(sparse.values for sparse in delta.values())


def norm_of(tensors: Tensors) -> float:
    """Frobenius norm of all tensors together."""
    return _norm(tensors.values())


def copy_of(client: str, payload: bytes, norm: float, seen: dict[bytes, str]) -> str | None:
    """Whose update of this round this one repeats byte for byte; None where it is its own, or says nothing. Notes it in
    `seen`. Honest clients have data of their own, and round at random on streams of their own.
    """
    if not norm:
        return None
    first = seen.setdefault(payload, client)
    return None if first == client else first


def shares(counts: Sequence[int], most: float) -> list[float]:
    """Each client's share of the aggregate by its number of examples, none above `most`; with sum 1.

    What a client has above it is shared among the others, in proportion to their counts. Where `most` is less than
    equal shares, they are equal.

    Args:
        counts: each at least 1.
        most: 0 < most <= 1.

    >>> shares([10**9, 30, 10], 0.5)
    [0.5, 0.375, 0.125]
    """
    most = max(most, 1 / len(counts))
    capped: set[int] = set()
    while True:
        left = 1 - most * len(capped)
        total = sum(count for place, count in enumerate(counts) if place not in capped)
        found = [most if place in capped else count / total * left for place, count in enumerate(counts)]
        over = {place for place, share in enumerate(found) if share > most}
        if not over:
            return found
        capped |= over


def close_with_most(
    norms: Sequence[float], close: Callable[[Sequence[int]], Closed]
) -> tuple[Closed | None, list[int], dict[int, str]]:
    """Closes a round with as many updates as it takes: usually all, else all but the one that stands in the way.

    The largest are left out first, one after the other, until the round closes; then each of them is tried again, so
    that none is left out with which it closes. At most twice as many tries as there are updates.

    Args:
        norms: of the updates.
        close: closes with the updates at these places, ascending; raises FederationError where it cannot.

    Returns:
        What `close` gave (None: not even one update closes the round), the places that went in, and the others with
        the reason.
    """
    largest_last = sorted(range(len(norms)), key=lambda place: (norms[place], place))
    kept = sorted(largest_last)
    out: dict[int, str] = {}
    closed: Closed | None = None
    while kept and closed is None:
        try:
            closed = close(kept)
        except FederationError as error:
            place = largest_last.pop()
            kept.remove(place)
            out[place] = f"the round cannot close with it: {error}"
    # With the last one it did not close, with as few others as there could be: that one stays out.
    for place in list(out)[:-1]:
        more = sorted([*kept, place])
        try:
            closed, kept = close(more), more
            del out[place]
        except FederationError:
            continue
    return closed, kept, out


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = (float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors)
    return math.sqrt(sum(squares))

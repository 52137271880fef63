"""Who masks with whom, and how many shares open a secret.

Up to 31 clients everybody masks with everybody (Bonawitz et al., ePrint 2017/281). From 32 on each has `degree` k
neighbours (Bell et al., ePrint 2020/704, section 3: a Harary graph over a permutation), the k/2 before and the k/2
after it on a circle, in the order of SHA-256 over all advertised keys and the name.

There a degree of order log n suffices, since drop-outs do not depend on the graph. Here everybody can compute the graph
when the keys are known, so that a server that deviates could declare just the right clients dropped: with such degrees
and some colluding neighbours that opens a single client's input. So the threshold t of a neighbourhood is

    t >= k/2 + c + 2,    c = a tenth of the clients, who may collude with the server and sit anywhere on the circle.

Then whoever is opened (t shares of its k + 1 are known, at most c of colluding clients and one its own) has more than
k/2 honest neighbours among the survivors, so at least one on either side; the nearest honest survivor on a side is one
of them. All honest survivors are thus a ring of masks that only the sum of all of them takes off, whoever drops and
whatever permutation there is: nothing is left to chance or to a search for convenient keys. What is left to chance is
whether enough stay: with the session's threshold T, t is the largest for which, of n clients of which any n - T drop
independently of the graph, all neighbourhoods keep t with probability 1 - 2^-30 (hypergeometric tails, exact integers,
the same at every client). Who grinds keys can make a round fail by that, as by dropping out. k is the smallest even
degree for which t suffices; where there is none the graph is complete. k and t by n:

    T        n = 32     64        128       256        1024
    2/3 n    30, 20     58, 37    112, 70   224, 139   848, 528
    3/4 n    26, 18     48, 32    92, 60    180, 117   602, 405
    4/5 n    22, 16     40, 28    78, 53    152, 103   494, 351
    9/10 n   16, 13     28, 22    52, 40    104, 79    342, 275
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fedsrd.privacy.secure.session import digest

COMPLETE_BELOW = 32
COLLUDING = 10
"""One client in so many may collude with the server, from COMPLETE_BELOW on."""
FAILURE_BITS = 30
"""Some neighbourhood keeps too few with probability below 2 to minus this, if drop-outs do not depend on the graph."""


@dataclass(frozen=True)
class Graph:
    """Neighbourhoods of one session.

    Attributes:
        order: all clients with keys, around the circle.
        degree: neighbours of each.
        threshold: shares that open a client's secret; of degree + 1, its own among them.
    """

    order: tuple[str, ...]
    degree: int
    threshold: int

    @cached_property
    def _at(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.order)}

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds shares of this client's secrets: itself and its neighbours, sorted; the i-th has point i + 1."""
        if self.degree == len(self.order) - 1:
            return tuple(sorted(self.order))
        at, half = self._at[name], self.degree // 2
        return tuple(sorted(self.order[(at + step) % len(self.order)] for step in range(-half, half + 1)))


def graph(names: Sequence[str], threshold: int, context: bytes) -> Graph:
    """The graph that follows from the roster.

    Args:
        names: clients with keys, at least the threshold.
        threshold: of the session.
        context: `context_of(session, roster)`.
    """
    order = sorted(names, key=lambda name: (digest("order", context, name), name))
    return Graph(tuple(order), *degree_and_threshold(len(order), threshold))


@lru_cache(maxsize=64)
def degree_and_threshold(clients: int, threshold: int) -> tuple[int, int]:
    """Neighbours of each client, and the shares that open a secret.

    Args:
        clients: with keys.
        threshold: of the session, at most as many.

    >>> degree_and_threshold(31, 16), degree_and_threshold(64, 48), degree_and_threshold(64, 33)
    ((30, 16), (48, 32), (63, 33))
    """
    if clients < COMPLETE_BELOW:
        return clients - 1, threshold
    least, most = 0, (clients - 2) // 2 + 1
    while most - least > 1:
        half = (least + most) // 2
        if _kept(clients, threshold, 2 * half) >= half + clients // COLLUDING + 2:
            most = half
        else:
            least = half
    if 2 * most >= clients - 1:
        return clients - 1, threshold
    return 2 * most, _kept(clients, threshold, 2 * most)


def _kept(clients: int, threshold: int, degree: int) -> int:
    """The largest t such that all clients keep t of their neighbours but for a chance of 2^-FAILURE_BITS: the union
    bound over clients of a hypergeometric tail, in integers.
    """
    others, staying = clients - 1, threshold - 1
    leaving = others - staying
    kept = max(0, degree - leaving)
    ways = math.comb(staying, kept) * math.comb(leaving, degree - kept)
    below, bound = 0, math.comb(others, degree)
    while kept <= degree:
        below += ways
        if clients * below << FAILURE_BITS > bound:
            return kept
        ways = ways * (staying - kept) * (degree - kept) // ((kept + 1) * (leaving - degree + kept + 1))
        kept += 1
    return degree

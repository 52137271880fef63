"""Which updates of a round count, and by how much, where some clients may lie (`core.robust`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsrd.core import robust
from fedsrd.core.tensors import Delta, GlobalState, Shape, SparseTensor, aligned
from fedsrd.errors import FederationError
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import RoundContext
from fedsrd.recipe import RobustRule

CHOOSING = ("krum", "multi-krum")
BY_ELEMENT = ("median", "trimmed-mean")


def least(rule: RobustRule, byzantine: int) -> int:
    """Fewest updates with which a rule holds against so many liars."""
    return 2 * byzantine + (3 if rule in CHOOSING else 1)


def left(rule: RobustRule, byzantine: int, count: int) -> int:
    """How many of so many updates count by a rule."""
    return {"krum": 1, "multi-krum": count - byzantine}.get(rule, count)


def whole(weights: Sequence[float]) -> list[float]:
    """The same weights with sum 1."""
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a round's updates.

    Attributes:
        weights: of those that count, by their place; with sum 1. Nobody does where fewer than `Robust.least` were
            usable.
        reasons: why others do not, by their place.
    """

    weights: dict[int, float]
    reasons: dict[int, str]


@dataclass(frozen=True)
class Robust:
    """A rule of `participation.robust`.

    Attributes:
        rule: its name.
        byzantine: clients that may lie.
    """

    rule: RobustRule
    byzantine: int

    @property
    def least(self) -> int:
        """Fewest updates that it needs."""
        return least(self.rule, self.byzantine)

    @property
    def by_element(self) -> bool:
        """Whether it makes an aggregate of its own (`total`), not weights."""
        return self.rule in BY_ELEMENT

    def judge(
        self, state: GlobalState, deltas: Sequence[Delta], weigh: Callable[[Sequence[int]], Sequence[float]]
    ) -> Verdict:
        """Chooses or reweighs, by how far updates are from each other.

        Args:
            state: what they build on.
            deltas: in an order that does not depend on who came first.
            weigh: what the updates at these places count among each other without the rule; with sum 1.
        """
        places = list(range(len(deltas)))
        if len(places) < self.least:
            return Verdict({}, {})
        if self.by_element:
            return Verdict(dict(zip(places, weigh(places), strict=True)), {})
        products = robust.gram(state.tensors, deltas)
        # A finite update may have no finite length; one such would leave nobody else a distance.
        usable = products.diagonal().isfinite()
        reasons = {
            place: f"left out by {self.rule}: its length in full weights is not finite (participation.robust)"
            for place in places
            if not usable[place]
        }
        places = [place for place in places if usable[place]]
        if len(places) < self.least:
            return Verdict({}, reasons)
        products = products[places][:, places]
        if self.rule == "geometric-median":
            found = robust.geometric_median(products, weigh(places))
            return Verdict(dict(zip(places, found.tolist(), strict=True)), reasons)
        scores = robust.krum(robust.distances(products), self.byzantine)
        chosen = robust.chosen(scores, left(self.rule, self.byzantine, len(places)))
        farthest = float(scores[chosen].max()) ** 0.5
        reasons |= {
            place: f"left out by {self.rule}: it is {float(score) ** 0.5:.3g} from its nearest others, who stays "
            f"{farthest:.3g} at most (participation.robust)"
            for at, (place, score) in enumerate(zip(places, scores, strict=True))
            if at not in chosen
        }
        kept = [places[at] for at in chosen]
        return Verdict(dict(zip(kept, weigh(kept), strict=True)), reasons)

    def total(self, config: FederationConfig, number: int, deltas: Sequence[Delta]) -> Delta:
        """The element-wise aggregate at the elements that all send in a round; every client counts alike. What a client
        does not send of them is zero, and what it sends besides does not count.

        Args:
            config: the federation's.
            number: of the round, which says what all send.
            deltas: one a client.

        Raises:
            FederationError: they are fewer than `least`.
        """
        if len(deltas) < self.least:
            raise FederationError(f"{len(deltas)} updates: {self.rule} needs at least {self.least}; state kept")
        elements = config.method.elements(config.uplink_table, RoundContext(number, config.seed))
        found = {}
        for name, draw in elements.items():
            if not any(name in delta for delta in deltas):
                continue
            shape = config.uplink_table.shapes[name]
            positions = None if draw is None else draw.positions(name, math.prod(shape))
            # A liar may send other elements than it should: what counts is what everybody has.
            values = torch.stack([_at(delta.get(name), shape, positions) for delta in deltas])
            trim = self.byzantine if self.rule == "trimmed-mean" else (len(deltas) - 1) // 2
            found[name] = SparseTensor(shape, positions, aligned(robust.trimmed_mean(values, trim)), draw)
        return found


def _at(sparse: SparseTensor | None, shape: Shape, positions: Tensor | None) -> Tensor:
    whole = torch.zeros(math.prod(shape)) if sparse is None else sparse.dense().reshape(-1)
    return whole if positions is None else whole[positions]

"""Which updates of a round count, and by how much, where some clients may lie (`core.robust`)."""

import math
from collections.abc import Sequence
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


def most(rule: RobustRule, byzantine: int, count: int) -> int:
    """Most of `count` updates that a rule keeps."""
    return {"krum": 1, "multi-krum": count - byzantine}.get(rule, count)


def whole(weights: Sequence[float]) -> list[float]:
    """The same weights with sum 1."""
    total = sum(weights)
    return [weight / total for weight in weights]


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a round's updates.

    Attributes:
        weights: of those that count, by their place; with sum 1.
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

    def judge(self, state: GlobalState, deltas: Sequence[Delta], weights: Sequence[float]) -> Verdict:
        """Chooses or reweighs, by how far updates are from each other.

        Args:
            state: what they build on.
            deltas: at least `least`, in an order that does not depend on who came first.
            weights: what they count without the rule; with sum 1.
        """
        if self.rule in BY_ELEMENT:
            return Verdict(dict(enumerate(weights)), {})
        products = robust.gram(state.tensors, deltas)
        if self.rule == "geometric-median":
            return self._reweighed(products, weights)
        scores = robust.krum(robust.distances(products), self.byzantine)
        kept = robust.chosen(scores, most(self.rule, self.byzantine, len(deltas)))
        shares = whole([weights[place] for place in kept])
        farthest = float(scores[kept].max()) ** 0.5
        return Verdict(
            dict(zip(kept, shares, strict=True)),
            {
                place: f"left out by {self.rule}: it is {float(scores[place]) ** 0.5:.3g} from its nearest others, who "
                f"stays {farthest:.3g} at most (participation.robust)"
                for place in range(len(deltas))
                if place not in kept
            },
        )

    def _reweighed(self, products: Tensor, weights: Sequence[float]) -> Verdict:
        # One length that overflows would make every distance, and so every weight, nothing.
        kept = products.diagonal().isfinite().nonzero().reshape(-1).tolist()
        out = {
            place: f"left out by {self.rule}: its length in full weights is not finite (participation.robust)"
            for place in range(len(weights))
            if place not in kept
        }
        shares = whole([weights[place] for place in kept])
        found = robust.geometric_median(products[kept][:, kept], shares).tolist() if kept else []
        return Verdict(dict(zip(kept, found, strict=True)), out)

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
    dense = torch.zeros(math.prod(shape)) if sparse is None else sparse.dense().reshape(-1)
    return dense if positions is None else dense[positions]

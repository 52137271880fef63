"""Which updates of a round count, and by how much, where some clients may lie (`core.robust`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsrd.core import robust
from fedsrd.core.tensors import Delta, Draw, GlobalState, SparseTensor, TensorTable, aligned
from fedsrd.recipe import RobustRule

CHOOSING = ("krum", "multi-krum")
BY_ELEMENT = ("median", "trimmed-mean")


def least(rule: RobustRule, byzantine: int) -> int:
    """Fewest updates with which a rule holds against so many liars."""
    return 2 * byzantine + (3 if rule in CHOOSING else 1)


def most(rule: RobustRule, byzantine: int, count: int) -> int:
    """Most of `count` updates that a rule keeps."""
    return {"krum": 1, "multi-krum": count - byzantine}.get(rule, count)


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
        whole = sum(weights[place] for place in kept)
        farthest = float(scores[kept].max()) ** 0.5
        return Verdict(
            {place: weights[place] / whole for place in kept},
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
        whole = sum(weights[place] for place in kept)
        shares = [weights[place] / whole for place in kept]
        found = robust.geometric_median(products[kept][:, kept], shares).tolist() if kept else []
        return Verdict(dict(zip(kept, found, strict=True)), out)

    def total(self, table: TensorTable, elements: Mapping[str, Draw | None], deltas: Sequence[Delta]) -> Delta:
        """The element-wise aggregate of updates that all have the same elements; every client counts alike.

        Args:
            table: that of updates.
            elements: what all send (`Method.elements`).
            deltas: at least `least`.
        """
        found = {}
        for name, draw in elements.items():
            sent = [delta[name] for delta in deltas if name in delta]
            if not sent:
                continue
            like = sent[0]
            zeros = torch.zeros_like(like.values)
            values = torch.stack([delta[name].values if name in delta else zeros for delta in deltas])
            trim = self.byzantine if self.rule == "trimmed-mean" else (len(deltas) - 1) // 2
            shape = table.shapes[name]
            found[name] = SparseTensor(shape, like.positions, aligned(robust.trimmed_mean(values, trim)), draw)
        return found

"""FLoRA: stack everybody's factors, merge their product into the base, start new factors.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024
(arXiv 2409.05976): [p_1 B_1 ... p_m B_m] [A_1; ...; A_m] = sum p_i B_i A_i, without loss and for any ranks; the price
is a broadcast m times as large, and a base model that changes. Every round's new A is drawn from the run's seed,
so that clients send changes of it and nobody sends the start.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedsrd import rng
from fedsrd.core.factors import Delta, Factors, LoraPair, ShapeTable, Slot, SparseTensor, initial_factors
from fedsrd.methods.method import ServerStep, Step, register
from fedsrd.methods.ranks import AnyRank


@register
class FLoRA(AnyRank):
    """Dense deltas up, all of them stacked down; the product goes into the base model."""

    name = "flora"
    summary = "stacked factors, merged into the base every round; clients of different ranks"
    changes_base = True

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """[p_i dB_i] (out_features, m r) and [dA_i] (m r, in_features): B starts at zero and A is known."""
        stacked: dict[Slot, SparseTensor] = {}
        for name, pair in state.items():
            lefts = [p * dense(delta, Slot(name, "B"), pair.B) for delta, p in zip(deltas, weights, strict=True)]
            rights = [dense(delta, Slot(name, "A"), pair.A) for delta in deltas]
            stacked[Slot(name, "B")] = SparseTensor.from_dense(torch.cat(lefts, 1))
            stacked[Slot(name, "A")] = SparseTensor.from_dense(torch.cat(rights, 0))
        return stacked

    def downlink_table(self, table: ShapeTable, clients: int) -> ShapeTable:
        """Every module with `clients` times its rank."""
        return stacked_table(table, clients)

    def apply(self, state: Factors, broadcast: Delta, step: Step) -> dict[str, LoraPair]:
        """The next round's fresh factors."""
        return initial_factors(ShapeTable.of(state), rng.integer(step.seed, "fresh A", step.round))

    def base_change(self, state: Factors, broadcast: Delta, step: Step) -> Iterable[tuple[str, Tensor]]:
        """Sum p_i B_i A_i."""
        for name, pair in state.items():
            left = broadcast[Slot(name, "B")].dense()
            right = broadcast[Slot(name, "A")].dense()
            yield name, left @ (pair.A.repeat(len(right) // len(pair.A), 1) + right)


def dense(delta: Delta, slot: Slot, like: Tensor) -> Tensor:
    """One slot's change, whole; zeros where nothing was sent."""
    return delta[slot].dense() if slot in delta else torch.zeros_like(like)


def stacked_table(table: ShapeTable, times: int) -> ShapeTable:
    """The table with `times` times every rank."""
    return ShapeTable(tuple(module._replace(rank=module.rank * times) for module in table.modules))

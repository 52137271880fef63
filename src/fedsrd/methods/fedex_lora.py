"""FedEx-LoRA: average A and B, and add to the base what averaging them apart got wrong.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models", ACL 2025
(arXiv 2410.09432): with B = mean(B_i) and A = mean(A_i), mean(B_i A_i) - B A is added to the frozen weight. That
residual is sum p_i b_i a_i with b_i = B_i - B and a_i = A_i - A. As sum p_i b_i = 0, m - 1 products make it:

    sum_{i<m} p_i b_i (a_i - a_m)

so the broadcast stacks the mean's change and m - 1 blocks: m times an adapter, as the paper's own exact form.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedsrd.core.factors import (
    Delta,
    Factors,
    LoraPair,
    ShapeTable,
    Slot,
    SparseTensor,
    add,
    add_weighted,
    dense_delta,
)
from fedsrd.methods.flora import dense, stacked_table
from fedsrd.methods.method import ClientStep, Method, ServerStep, Step, register


@register
class FedExLoRA(Method):
    """Dense deltas up; the mean and the factored residual down; the residual goes into the base model."""

    name = "fedex-lora"
    summary = "averaged A and B, the averaging's error added to the base"
    changes_base = True

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The whole dB and dA."""
        return dense_delta(after, before)

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """[mean dB, p_1 b_1, ...] (out_features, m r) and [mean dA; a_1 - a_m; ...] (m r, in_features)."""
        stacked: dict[Slot, SparseTensor] = {}
        for name, pair in state.items():
            B, A = Slot(name, "B"), Slot(name, "A")
            mean_B = add_weighted(torch.zeros(pair.B.shape), B, deltas, weights)
            mean_A = add_weighted(torch.zeros(pair.A.shape), A, deltas, weights)
            last = dense(deltas[-1], A, pair.A)
            pairs = list(zip(deltas[:-1], weights[:-1], strict=True))
            lefts = [p * (dense(delta, B, pair.B) - mean_B) for delta, p in pairs]
            rights = [dense(delta, A, pair.A) - last for delta, _ in pairs]
            stacked[B] = SparseTensor.from_dense(torch.cat([mean_B, *lefts], 1))
            stacked[A] = SparseTensor.from_dense(torch.cat([mean_A, *rights], 0))
        return stacked

    def downlink_table(self, table: ShapeTable, clients: int) -> ShapeTable:
        """Every module with `clients` times its rank."""
        return stacked_table(table, clients)

    def apply(self, state: Factors, broadcast: Delta, step: Step) -> dict[str, LoraPair]:
        """The mean of the factors: the first block."""
        first: dict[Slot, SparseTensor] = {}
        for name, pair in state.items():
            rank = len(pair.A)
            B, A = Slot(name, "B"), Slot(name, "A")
            first[B] = SparseTensor.from_dense(broadcast[B].dense()[:, :rank].contiguous())
            first[A] = SparseTensor.from_dense(broadcast[A].dense()[:rank])
        return add(state, first)

    def base_change(self, state: Factors, broadcast: Delta, step: Step) -> Iterable[tuple[str, Tensor]]:
        """mean(B_i A_i) - mean(B_i) mean(A_i): the other blocks' product."""
        for name, pair in state.items():
            rank = len(pair.A)
            left = broadcast[Slot(name, "B")].dense()[:, rank:]
            if left.shape[1]:
                yield name, left @ broadcast[Slot(name, "A")].dense()[rank:]

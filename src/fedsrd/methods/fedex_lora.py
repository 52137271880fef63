"""FedEx-LoRA: average A and B, and add to the base what averaging them apart got wrong.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models", ACL 2025
(arXiv 2410.09432): with B = mean(B_i) and A = mean(A_i), mean(B_i A_i) - B A is added to the frozen weight. That
residual is sum p_i b_i a_i with b_i = B_i - B and a_i = A_i - A. As sum p_i b_i = 0, m - 1 products make it:

    sum_{i<m} p_i b_i (a_i - a_m)

so the broadcast stacks the mean's change and m - 1 blocks: m times an adapter, as the paper's own exact form.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import tensor_name
from fedsrd.core.tensors import (
    Delta,
    GlobalState,
    SparseTensor,
    Tensors,
    TensorTable,
    add,
    add_base,
    add_weighted,
    aligned,
    dense_delta,
)
from fedsrd.methods.flora import dense, stacked_table
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, RoundContext, ServerContext
from fedsrd.methods.registry import register


@register
class FedExLoRA(Method):
    """Dense deltas up; the mean and the factored residual down; the residual goes into the base model."""

    name = "fedex-lora"
    summary = "averaged A and B, the averaging's error added to the base"
    changes_base = True
    needs_lora = True

    @property
    def makes_steps(self) -> bool:
        """No: the broadcast holds the residual's factors beside the mean."""
        return False

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The whole dB and dA."""
        return dense_delta(after, plan.start), {}

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """[mean dB, p_1 b_1, ...] (out_features, m r) and [mean dA; a_1 - a_m; ...] (m r, in_features)."""
        deltas, weights = [one.delta for one in contributions], [one.weight for one in contributions]
        stacked: dict[str, SparseTensor] = {}
        for module, pair in lora.pairs_of(state.tensors).items():
            B, A = tensor_name(module, "B"), tensor_name(module, "A")
            mean_B = add_weighted(torch.zeros(pair.B.shape), B, deltas, weights)
            mean_A = add_weighted(torch.zeros(pair.A.shape), A, deltas, weights)
            last = dense(deltas[-1], A, pair.A)
            lefts = [one.weight * (dense(one.delta, B, pair.B) - mean_B) for one in contributions[:-1]]
            rights = [dense(one.delta, A, pair.A) - last for one in contributions[:-1]]
            stacked[B] = SparseTensor.from_dense(torch.cat([mean_B, *lefts], 1))
            stacked[A] = SparseTensor.from_dense(torch.cat([mean_A, *rights], 0))
        return stacked, {}

    def downlink_table(self, table: TensorTable, clients: int) -> TensorTable:
        """Every module with `clients` times its rank."""
        return stacked_table(table, clients)

    def apply(self, state: GlobalState, broadcast: Delta, context: RoundContext) -> GlobalState:
        """The mean of the factors, the first block; the other blocks' product, mean(B_i A_i) - mean(B_i) mean(A_i),
        goes into the base.
        """
        first: dict[str, SparseTensor] = {}
        for module, pair in lora.pairs_of(state.tensors).items():
            rank = len(pair.A)
            B, A = tensor_name(module, "B"), tensor_name(module, "A")
            first[B] = SparseTensor.from_dense(broadcast[B].dense()[:, :rank].contiguous())
            first[A] = SparseTensor.from_dense(broadcast[A].dense()[:rank])
        base = add_base(state.base_delta, self._residuals(state, broadcast))
        return state.following(add(state.tensors, first), base)

    def _residuals(self, state: GlobalState, broadcast: Delta) -> Iterator[tuple[str, Tensor]]:
        for module, pair in lora.pairs_of(state.tensors).items():
            rank = len(pair.A)
            left = aligned(broadcast[tensor_name(module, "B")].dense()[:, rank:])
            if left.shape[1]:
                yield module, left @ aligned(broadcast[tensor_name(module, "A")].dense()[rank:])

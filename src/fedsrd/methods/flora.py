"""FLoRA: stack everybody's factors, merge their product into the base, start new factors.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024
(arXiv 2409.05976): [p_1 B_1 ... p_m B_m] [A_1; ...; A_m] = sum p_i B_i A_i, without loss and for any ranks; the price
is a broadcast m times as large, and a base model that changes. Every round's new A is drawn from the run's seed,
so that clients send changes of it and nobody sends the start.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedsrd import rng
from fedsrd.core import lora
from fedsrd.core.lora import tensor_name
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, TensorTable, add_base, initial_tensors
from fedsrd.methods.method import Contribution, MethodState, RoundContext, ServerContext
from fedsrd.methods.ranks import AnyRank
from fedsrd.methods.registry import register


@register
class FLoRA(AnyRank):
    """Dense deltas up, all of them stacked down; the product goes into the base model."""

    name = "flora"
    summary = "stacked factors, merged into the base every round; clients of different ranks"
    changes_base = True

    @property
    def makes_steps(self) -> bool:
        """No: the broadcast is everybody's factors."""
        return False

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """[p_i dB_i] (out_features, m r) and [dA_i] (m r, in_features): B starts at zero and A is known."""
        stacked: dict[str, SparseTensor] = {}
        for module, pair in lora.pairs_of(state.tensors).items():
            B, A = tensor_name(module, "B"), tensor_name(module, "A")
            lefts = [one.weight * dense(one.delta, B, pair.B) for one in contributions]
            rights = [dense(one.delta, A, pair.A) for one in contributions]
            stacked[B] = SparseTensor.from_dense(torch.cat(lefts, 1))
            stacked[A] = SparseTensor.from_dense(torch.cat(rights, 0))
        return stacked, {}

    def downlink_table(self, table: TensorTable, clients: int) -> TensorTable:
        """Every module with `clients` times its rank."""
        return stacked_table(table, clients)

    def apply(self, state: GlobalState, broadcast: Delta, context: RoundContext) -> GlobalState:
        """The next round's fresh factors; sum p_i B_i A_i goes into the base."""
        seed = rng.integer(context.seed, "fresh A", context.round)
        fresh = initial_tensors(TensorTable.of(state.tensors), seed)
        return state.following(fresh, add_base(state.base_delta, self._products(state, broadcast)))

    def _products(self, state: GlobalState, broadcast: Delta) -> Iterator[tuple[str, Tensor]]:
        for module, pair in lora.pairs_of(state.tensors).items():
            left = broadcast[tensor_name(module, "B")].dense()
            right = broadcast[tensor_name(module, "A")].dense()
            yield module, left @ (pair.A.repeat(len(right) // len(pair.A), 1) + right)


def dense(delta: Delta, name: str, like: Tensor) -> Tensor:
    """One tensor's change, whole; zeros where nothing was sent."""
    return delta[name].dense() if name in delta else torch.zeros_like(like)


def stacked_table(table: TensorTable, times: int) -> TensorTable:
    """The table with `times` times every rank."""
    return lora.table_of(module._replace(rank=module.rank * times) for module in lora.modules_of(table))

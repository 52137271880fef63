"""FedAvg on LoRA factors: every client sends all of dB and dA, the server averages each factor on its own.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644).
"""

from collections.abc import Sequence

import torch

from fedsrd.core.factors import Delta, Factors, SparseTensor, add_weighted, difference, slots
from fedsrd.methods.method import ClientStep, Method, ServerStep, register


@register
class FedAvg(Method):
    """Dense deltas up, their weighted mean down: mean(B) mean(A) stands in for mean(B A)."""

    name = "fedavg"
    summary = "dense averaging of A and B, each on its own"

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The whole dB and dA, float32."""
        return {slot: SparseTensor.from_dense(delta) for slot, delta in difference(after, before)}

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """sum_i p_i delta_i for every factor, dense."""
        mean = {}
        for slot, tensor in slots(state):
            zero = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            mean[slot] = SparseTensor.from_dense(add_weighted(zero, slot, deltas, weights))
        return mean

"""FedSA-LoRA: A is shared, every client keeps a B of its own.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025 (arXiv 2410.01463): A
learns what is general, B what is the client's own, so only A travels. Every client ends with a model of its
own; there is no global one.
"""

from collections.abc import Sequence

from fedsrd.core.factors import Delta, Factors, LoraPair, SparseTensor, average, difference
from fedsrd.methods.method import ClientStep, Method, ServerStep, register


@register
class FedSALoRA(Method):
    """dA up, mean dA down, B at home."""

    name = "fedsa-lora"
    summary = "A averaged, B kept by each client"
    personal = True

    def local_start(self, state: Factors, step: ClientStep) -> Factors:
        """The global A with the client's own B; the common start's B = 0 where it has none yet."""
        return {name: LoraPair(step.memory.get(name, pair.B), pair.A) for name, pair in state.items()}

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The whole dA; B stays in the client's memory."""
        step.memory.update({name: pair.B for name, pair in after.items()})
        return {slot: SparseTensor.from_dense(delta) for slot, delta in difference(after, before) if slot.factor == "A"}

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """sum_i p_i dA_i."""
        return average(state, deltas, weights)

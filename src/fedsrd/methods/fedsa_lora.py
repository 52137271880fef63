"""FedSA-LoRA: A is shared, every client keeps a B of its own.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025 (arXiv 2410.01463): A
learns what is general, B what is the client's own, so only A travels. Every client ends with a model of its
own; there is no global one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, difference
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, ServerContext, mean
from fedsrd.methods.registry import register


@register
class FedSALoRA(Method):
    """dA up, mean dA down, B at home."""

    name = "fedsa-lora"
    summary = "A averaged, B kept by each client"
    personal = True
    keeps_client_state = True
    needs_lora = True

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """The global A with the client's own B; the common start's B = 0 where it has none yet."""
        plan = super().local_plan(state, context)
        return replace(plan, start={**state.tensors, **context.memory})

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The whole dA; B stays in the client's memory."""
        own = {name: tensor for name, tensor in after.items() if lora.split(name)[1] == "B"}
        shared = {name: tensor for name, tensor in after.items() if name not in own}
        return {name: SparseTensor.from_dense(delta) for name, delta in difference(shared, plan.start)}, own

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """sum_i p_i dA_i."""
        return mean(state, contributions).items()

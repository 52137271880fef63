"""FFA-LoRA: A stays frozen at the common random start; only B trains and travels.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024 (arXiv 2403.12313). With A shared and
fixed, averaging B is averaging the full updates exactly: mean(B_i) A = mean(B_i A). The privacy noise of that paper is
not part of this.
"""

from dataclasses import replace

from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import GlobalState
from fedsrd.methods.fedavg import FedAvg
from fedsrd.methods.method import ClientContext
from fedsrd.methods.registry import register


@register
class FFALoRA(FedAvg):
    """FedAvg of B alone."""

    name = "ffa-lora"
    summary = "A frozen at a common start, B averaged"
    needs_lora = True

    def trains(self, name: str) -> bool:
        """B, not A."""
        return lora.split(name)[1] != "A"

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """B trains, A does not."""
        plan = super().local_plan(state, context)
        return replace(plan, trained=tuple(filter(self.trains, plan.trained)))

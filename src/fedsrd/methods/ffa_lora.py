"""FFA-LoRA: A stays frozen at the common random start; only B trains and travels.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024 (arXiv 2403.12313). With A shared and
fixed, averaging B is averaging the full updates exactly: mean(B_i) A = mean(B_i A). The privacy noise of that paper is
not part of this.
"""

from collections.abc import Sequence

from fedsrd.core.factors import Factor
from fedsrd.methods.fedavg import FedAvg
from fedsrd.methods.method import register


@register
class FFALoRA(FedAvg):
    """FedAvg of B alone."""

    name = "ffa-lora"
    summary = "A frozen at a common start, B averaged"

    def trained(self, round_number: int) -> Sequence[Factor]:
        """B, in every round."""
        return ("B",)

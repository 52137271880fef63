"""FedProx: FedAvg whose clients are held near the global factors while they train.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (arXiv 1812.06127): a client minimises its
loss plus mu/2 ||theta - theta_global||^2 over the LoRA factors. The paper's variable amount of local work is not part
of this: every client makes the recipe's steps.
"""

from typing import Annotated

from pydantic import Field

from fedsrd.methods.fedavg import FedAvg, FedAvgOptions
from fedsrd.methods.method import register


class FedProxOptions(FedAvgOptions):
    """Options of FedProx: FedAvg's, and the strength `mu` of the proximal term."""

    mu: Annotated[float, Field(ge=0)] = 0.01


@register
class FedProx(FedAvg):
    """FedAvg with a proximal term in the clients' loss."""

    name = "fedprox"
    summary = "FedAvg with a proximal term in the clients' loss"
    Options = FedProxOptions
    options: FedProxOptions

    @property
    def proximal(self) -> float:
        """Mu of the proximal term."""
        return self.options.mu

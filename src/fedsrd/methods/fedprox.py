"""FedProx: FedAvg whose clients are held near the global factors while they train.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (arXiv 1812.06127): a client minimises its
loss plus mu/2 ||theta - theta_global||^2 over the LoRA factors. The paper's variable amount of local work is not part
of this: every client makes the recipe's steps.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import GlobalState
from fedsrd.methods.fedavg import FedAvg, FedAvgOptions
from fedsrd.methods.method import ClientContext
from fedsrd.methods.registry import register


class FedProxOptions(FedAvgOptions):
    """Options of FedProx: FedAvg's, and the strength `mu` of the proximal term."""

    mu: Annotated[float, Field(ge=0, le=1e6)] = 0.01


@register
class FedProx(FedAvg):
    """FedAvg with a proximal term in the clients' loss."""

    name = "fedprox"
    summary = "FedAvg with a proximal term in the clients' loss"
    Options = FedProxOptions
    options: FedProxOptions

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """Everything, held near the start by mu."""
        return replace(super().local_plan(state, context), proximal=self.options.mu)

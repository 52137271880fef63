"""FedAvg on LoRA factors: every client sends dB and dA, the server averages each factor on its own.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644). With a server learning rate
other than 1 it is FedOpt with plain SGD at the server (Reddi et al., arXiv 2003.00295). With an uplink other than
"dense" it is the FedAvg into which FedSRD's paper plugs sparsifiers: then the broadcast holds what anybody sent.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedsrd.core.factors import Delta, Factors, SparseTensor, average
from fedsrd.methods.method import ClientStep, Method, ServerStep, register
from fedsrd.methods.uplink import Uplink, UplinkOptions, sparse_update


class FedAvgOptions(UplinkOptions):
    """Options of FedAvg: the uplink's, which is dense by default, and `server_lr`, by which the mean is multiplied."""

    uplink: Uplink = "dense"
    server_lr: Annotated[float, Field(gt=0, le=100)] = 1.0


@register
class FedAvg(Method):
    """Dense deltas up, their weighted mean down: mean(B) mean(A) stands in for mean(B A)."""

    name = "fedavg"
    summary = "dense averaging of A and B, each on its own"
    Options = FedAvgOptions
    options: FedAvgOptions

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The changes of the factors that train, whole or sparse, float32."""
        delta = sparse_update(before, after, self.options, step)
        trained = self.trained(step.round)
        return {slot: sparse for slot, sparse in delta.items() if slot.factor in trained}

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """server_lr sum_i p_i delta_i for every factor."""
        mean = average(state, deltas, weights)
        if self.options.server_lr == 1.0:
            return mean
        return {
            slot: SparseTensor(found.shape, found.positions, found.values * self.options.server_lr)
            for slot, found in mean.items()
        }

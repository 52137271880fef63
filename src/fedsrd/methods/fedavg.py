"""FedAvg on LoRA factors, or on any tensors: every client sends its change, the server averages each tensor.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644). With a [server_optimizer] it
is FedOpt (Reddi et al., arXiv 2003.00295). With a sparsifier other than "dense" it is the FedAvg into which FedSRD's
paper plugs sparsifiers: then the broadcast holds what anybody sent.
"""

from abc import ABC
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import model_validator

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, average, difference
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, ServerContext
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Sparsifier, SparsifierOptions, sparse


class FedAvgOptions(SparsifierOptions):
    """Options of FedAvg: the sparsifier's, which is dense by default."""

    sparsifier: Sparsifier = "dense"

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, given: Any) -> Any:
        if isinstance(given, dict) and "server_lr" in given:
            raise ValueError(
                f"server_lr = {given['server_lr']!r} has moved: "
                f'server_optimizer = {{ name = "sgd", learning_rate = {given["server_lr"]} }}'
            )
        return given


def mean(state: GlobalState, contributions: Sequence[Contribution]) -> dict[str, SparseTensor]:
    """sum_i p_i delta_i of every tensor that somebody sent."""
    return average(state.tensors, [one.delta for one in contributions], [one.weight for one in contributions])


class Averaging(Method, ABC):
    """The server's side of the methods that average every tensor on its own."""

    @property
    def linear(self) -> bool:
        """Always: the server averages."""
        return True

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """sum_i p_i delta_i, each tensor on its own."""
        return mean(state, contributions).items()

    def aggregate_sum(
        self, state: GlobalState, total: Delta, context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """The sum itself."""
        return total.items()


@register
class FedAvg(Averaging):
    """Dense deltas up, their weighted mean down: mean(B) mean(A) stands in for mean(B A)."""

    name = "fedavg"
    summary = "dense averaging of A and B, each on its own"
    Options = FedAvgOptions
    options: FedAvgOptions

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The changes of the tensors that train, whole or sparse, float32."""
        changes = difference({name: after[name] for name in plan.trained}, plan.start)
        return sparse(changes, plan.start, after, self.options, context), {}

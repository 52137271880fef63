"""FedAvg on LoRA factors, or on any tensors: every client sends its change, the server averages each tensor.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644). With a [server_optimizer] it
is FedOpt (Reddi et al., arXiv 2003.00295). With a sparsifier other than "dense" it is the FedAvg into which FedSRD's
paper plugs sparsifiers: then the broadcast holds what anybody sent. In few bits it is FedPAQ (Reisizadeh et al., arXiv
1909.13014); with feedback at both ends and ternary values STC (Sattler et al., arXiv 1903.02891).
"""

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import model_validator

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, Draw, GlobalState, SparseTensor, Tensors, TensorTable, difference
from fedsrd.methods.feedback import ServerFeedback, WithFeedback, compensated_broadcast, same_elements
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, RoundContext, ServerContext, mean
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import COMMON, Sparsifier, SparsifierOptions, common, sparse


class FedAvgOptions(SparsifierOptions):
    """Options of FedAvg: the sparsifier's, which is dense by default, and `server_feedback`: "ef14" keeps what the
    broadcast's number type takes away for the next one (DoubleSqueeze, arXiv 1905.05957).
    """

    sparsifier: Sparsifier = "dense"
    server_feedback: ServerFeedback = "none"

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, given: Any) -> Any:
        if isinstance(given, dict) and "server_lr" in given:
            raise ValueError(
                f"server_lr = {given['server_lr']!r} has moved: "
                f'server_optimizer = {{ name = "sgd", learning_rate = {given["server_lr"]} }}'
            )
        return given


class Averaging(Method, ABC):
    """The server's side of the methods that average every tensor on its own."""

    @property
    def linear(self) -> bool:
        """The server averages."""
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
class FedAvg(WithFeedback, Averaging):
    """Dense deltas up, their weighted mean down: mean(B) mean(A) stands in for mean(B A)."""

    name = "fedavg"
    summary = "dense averaging of A and B, each on its own"
    Options = FedAvgOptions
    options: FedAvgOptions

    @property
    def linear(self) -> bool:
        """Unless with EF21: what is known of a client that sits out depends on who does."""
        return self.options.feedback != "ef21"

    @property
    def same_elements(self) -> bool:
        """With a sparsifier that chooses nothing."""
        return self.options.sparsifier in COMMON

    def trains(self, name: str) -> bool:
        """Whether clients train this tensor: all."""
        return True

    def elements(self, table: TensorTable, context: RoundContext) -> Mapping[str, Draw | None]:
        """All, or this round's part, of what trains."""
        names = (spec.name for spec in table.specs if self.trains(spec.name))
        return {name: common(self.options, name, context) for name in names}

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The changes of the tensors that train, whole or sparse, float32."""
        changes = difference({name: after[name] for name in plan.trained}, plan.start)
        return sparse(changes, plan.start, after, self.options, context)

    def compress(
        self, state: GlobalState, steps: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The step; with feedback also what earlier broadcasts lost of the elements that it has."""
        if self.options.server_feedback == "none":
            return dict(steps), {}
        return compensated_broadcast(steps, context, same_elements)

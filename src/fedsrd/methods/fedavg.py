"""FedAvg on LoRA factors, or on any tensors: every client sends its change, the server averages each tensor.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644). With a [server_optimizer] it
is FedOpt (Reddi et al., arXiv 2003.00295). With a sparsifier other than "dense" it is the FedAvg into which FedSRD's
paper plugs sparsifiers: then the broadcast holds what anybody sent.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import model_validator

from fedsrd.core import feedback
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, average, difference
from fedsrd.methods.method import Aggregate, ClientContext, Contribution, Method, MethodState, ServerContext
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Sparsifier, SparsifierOptions, sparse

ServerFeedback = Literal["none", "ef14"]


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


def mean(state: GlobalState, contributions: Sequence[Contribution]) -> dict[str, SparseTensor]:
    """sum_i p_i delta_i of every tensor that somebody sent."""
    return average(state.tensors, [one.delta for one in contributions], [one.weight for one in contributions])


def aggregates(changes: Delta) -> Iterator[Aggregate]:
    """Each change as an aggregate that keeps nothing."""
    return (Aggregate(name, change) for name, change in changes.items())


@register
class FedAvg(Method):
    """Dense deltas up, their weighted mean down: mean(B) mean(A) stands in for mean(B A)."""

    name = "fedavg"
    summary = "dense averaging of A and B, each on its own"
    Options = FedAvgOptions
    options: FedAvgOptions

    @property
    def linear(self) -> bool:
        """Always: the server averages."""
        return True

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The changes of the tensors that train, whole or sparse, float32."""
        changes = difference({name: after[name] for name in plan.trained}, plan.start)
        return sparse(changes, plan.start, after, self.options, context)

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[Aggregate]:
        """sum_i p_i delta_i, each tensor on its own; with EF21 what is known of it after this round."""
        # With EF21 a client that sat out keeps its part of the estimate.
        share = len(contributions) / max(context.clients, len(contributions))
        return self._aggregates(mean(state, contributions), share if self.options.feedback == "ef21" else 1.0, context)

    def aggregate_sum(self, state: GlobalState, total: Delta, context: ServerContext) -> Iterable[Aggregate]:
        """The sum itself."""
        return self._aggregates(total, 1.0, context)

    def _aggregates(self, total: Delta, share: float, context: ServerContext) -> Iterator[Aggregate]:
        for name, change in total.items():
            if self.options.feedback != "ef21":
                yield Aggregate(name, change)
                continue
            key = feedback.key("ef21", name)
            before = context.memory.get(key)
            moved = change.scaled(share)
            known = moved.dense() if before is None else feedback.add_to(before.clone(), moved, 1.0)
            yield Aggregate(name, SparseTensor.from_dense(known), {key: known})

    def compress(
        self, state: GlobalState, steps: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The step; with feedback also what earlier broadcasts lost of the elements that it has."""
        if self.options.server_feedback == "none":
            return dict(steps), {}
        sent, wanted = {}, {}
        for name, step in steps:
            before = context.memory.get(feedback.key("ef14", name))
            whole = step.dense() if before is None else feedback.add_to(before.clone(), step, 1.0)
            flat = whole.view(-1)
            values = flat.clone() if step.positions is None else flat[step.positions]
            sent[name], wanted[name] = SparseTensor(step.shape, step.positions, values, step.draw), whole
        return sent, feedback.remembered("ef14", wanted, context.received(sent), {})

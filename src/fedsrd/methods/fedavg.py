"""FedAvg on LoRA factors, or on any tensors: every client sends its change, the server averages each tensor.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629), applied to LoRA factors as in FedIT (Zhang et al., arXiv 2305.05644). With a [server_optimizer] it
is FedOpt (Reddi et al., arXiv 2003.00295). With a sparsifier other than "dense" it is the FedAvg into which FedSRD's
paper plugs sparsifiers: then the broadcast holds what anybody sent. In few bits it is FedPAQ (Reisizadeh et al., arXiv
1909.13014); with feedback at both ends and ternary values STC (Sattler et al., arXiv 1903.02891).
"""

from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from fedsrd.core import feedback
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, average, difference
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, ServerContext
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


def estimated(
    state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
) -> tuple[dict[str, SparseTensor], MethodState]:
    """EF21's server (arXiv 2106.05203): what it knows of the clients' mean change after this round, and the same to be
    kept. A client that sits out keeps its part of the estimate (arXiv 2110.03294).
    """
    share = len(contributions) / max(context.clients, len(contributions))
    keys = {name: feedback.key("ef21", name) for name in state.tensors}
    known = {name: context.memory[key] for name, key in keys.items() if key in context.memory}
    for name, change in mean(state, contributions).items():
        before = known.get(name, torch.zeros(change.shape))
        known[name] = feedback.add_to(before.clone(), change.scaled(share), 1.0)
    steps = {name: SparseTensor.from_dense(tensor) for name, tensor in known.items()}
    return steps, {keys[name]: tensor for name, tensor in known.items()}


def compensated_broadcast(
    steps: Iterable[tuple[str, SparseTensor]],
    context: ServerContext,
    choose: Callable[[str, Tensor, SparseTensor], SparseTensor],
) -> tuple[Delta, MethodState]:
    """A broadcast of steps and what earlier ones lost, and what this one loses.

    Args:
        steps: by tensor.
        context: the server's.
        choose: from a tensor's name, its step with the residual and its step, what is sent.
    """
    sent, wanted = {}, {}
    for name, step in steps:
        before = context.memory.get(feedback.key("ef14", name))
        whole = step.dense().clone() if before is None else feedback.add_to(before.clone(), step, 1.0)
        sent[name], wanted[name] = choose(name, whole, step), whole
    return sent, feedback.remembered("ef14", wanted, context.received(sent), {})


def _same_elements(name: str, whole: Tensor, step: SparseTensor) -> SparseTensor:
    flat = whole.reshape(-1)
    values = flat.clone() if step.positions is None else flat[step.positions]
    return SparseTensor(step.shape, step.positions, values, step.draw)


@register
class FedAvg(Averaging):
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
    def keeps_client_state(self) -> bool:  # type: ignore[override]
        """With feedback."""
        return self.options.feedback != "none"

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The changes of the tensors that train, whole or sparse, float32."""
        changes = difference({name: after[name] for name in plan.trained}, plan.start)
        return sparse(changes, plan.start, after, self.options, context)

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The mean; with EF21 all that is known of it after this round, which is kept too."""
        if self.options.feedback != "ef21":
            return super().server_update(state, contributions, context)
        known, kept = estimated(state, contributions, context)
        sent, memory = self._broadcast(state, known.items(), context)
        return sent, {**memory, **kept}

    def compress(
        self, state: GlobalState, steps: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The step; with feedback also what earlier broadcasts lost of the elements that it has."""
        if self.options.server_feedback == "none":
            return dict(steps), {}
        return compensated_broadcast(steps, context, _same_elements)

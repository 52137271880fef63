"""Feedback at the server's side, as parts that any method may use (`core.feedback` has the rules)."""

from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsrd.core import feedback
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, add_to
from fedsrd.methods.method import Contribution, Method, MethodState, ServerContext, mean
from fedsrd.methods.sparsifier import SparsifierOptions

ServerFeedback = Literal["none", "ef14"]


class WithFeedback(Method, ABC):
    """What the `feedback` of a method's options asks of its server: EF21's estimate, and nothing for EF14."""

    options: SparsifierOptions

    @property
    def keeps_client_state(self) -> bool:  # type: ignore[override]
        """With feedback."""
        return self.options.feedback != "none"

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The method's own; with EF21 the step is all that is known of the clients' mean change, which is kept too."""
        if self.options.feedback != "ef21":
            return super().server_update(state, contributions, context)
        known, kept = _estimated(state, contributions, context)
        sent, memory = self._broadcast(state, known.items(), context)
        return sent, {**memory, **kept}


def _estimated(
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
        known[name] = add_to(before.clone(), change.scaled(share), 1.0)
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
        whole = step.dense().clone() if before is None else add_to(before.clone(), step, 1.0)
        sent[name], wanted[name] = choose(name, whole, step), whole
    return sent, feedback.remembered("ef14", wanted, context.received(sent), {})


def same_elements(name: str, whole: Tensor, step: SparseTensor) -> SparseTensor:
    """What `compensated_broadcast` sends where the step has said which elements."""
    flat = whole.reshape(-1)
    values = flat.clone() if step.positions is None else flat[step.positions]
    return SparseTensor(step.shape, step.positions, values, step.draw)

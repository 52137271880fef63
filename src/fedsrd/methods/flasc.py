"""FLASC: the largest weights down, the largest changes up, dense training in between, Adam at the server.

Kuo et al., "Federated LoRA with Sparse Communication" (arXiv 2406.05233). The server holds the dense factors theta; a
client gets theta's elements of largest magnitude (zeros elsewhere), trains all of them, and sends its largest changes;
the server takes their mean as a gradient for Adam (FedAdam, Reddi et al., arXiv 2003.00295), or for the
recipe's [server_optimizer]. Shares are of the whole adapter, not of each matrix. As everybody can draw the common
start, the first round's download is the whole start.

What clients hold is the sparse download; what is evaluated and kept is theta, which never travels whole.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.server_optimizer import ServerOptimizer, ServerOptimizerOptions
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, add_weighted, difference
from fedsrd.methods.method import (
    ClientContext,
    Contribution,
    Method,
    MethodOptions,
    MethodState,
    RoundContext,
    ServerContext,
)
from fedsrd.methods.registry import register

Share = Annotated[float, Field(gt=0, le=1)]


class FLASCOptions(MethodOptions):
    """Options.

    Attributes:
        down: share of the adapter's elements in a download (the paper: 1/4).
        up: share of the adapter's elements in an upload (the paper: 1/4).
    """

    down: Share = 0.25
    up: Share = 0.25

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, given: Any) -> Any:
        moved = {"server_lr": "learning_rate", "beta1": "beta1", "beta2": "beta2", "epsilon": "epsilon"}
        for key, now in moved.items():
            if isinstance(given, dict) and key in given:
                raise ValueError(
                    f"{key} = {given[key]!r} has moved: [server_optimizer] {now} = {given[key]!r}, beside FLASC's "
                    'others: name = "adam", learning_rate = 2e-3, beta2 = 0.999, bias_correction = true'
                )
        return given


@register
class FLASC(Method):
    """Top changes up, top weights down."""

    name = "flasc"
    summary = "largest weights down, largest changes up, Adam at the server"
    Options = FLASCOptions
    # An epsilon as large as FedAdam's authors take it, so that an element on which clients do not agree moves little.
    default_optimizer = ServerOptimizerOptions(
        name="adam", learning_rate=2e-3, beta1=0.9, beta2=0.999, epsilon=1e-3, bias_correction=True
    )
    server_model = True
    options: FLASCOptions

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The adapter's largest changes."""
        return largest(dict(difference(after, plan.start)), self.options.up), {}

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """One step of the server optimizer on theta, and theta's largest elements."""
        deltas, weights = [one.delta for one in contributions], [one.weight for one in contributions]
        optimizer = context.optimizer or ServerOptimizer(self.default_optimizer)
        made: dict[str, Tensor] = {}
        memory = {}
        for name, theta in self.model(state, context.memory).items():
            mean = SparseTensor.from_dense(add_weighted(torch.zeros(theta.shape), name, deltas, weights))
            step, kept = optimizer.step(name, mean, context.memory)
            made[name] = theta + step.dense()
            memory.update({**kept, f"theta/{name}": made[name]})
        return largest(made, self.options.down), memory

    def apply(self, state: GlobalState, broadcast: Delta, context: RoundContext) -> GlobalState:
        """The download itself, zeros elsewhere."""
        return state.following(
            {
                name: broadcast[name].dense() if name in broadcast else torch.zeros_like(tensor)
                for name, tensor in state.tensors.items()
            }
        )

    def model(self, state: GlobalState, memory: MethodState) -> Tensors:
        """Theta; before the first round the common start."""
        return {name: memory.get(f"theta/{name}", tensor) for name, tensor in state.tensors.items()}


def largest(tensors: Mapping[str, Tensor], share: float) -> Delta:
    """The elements of largest magnitude of all tensors together: a `share` of all, and at least one."""
    count = max(round(share * sum(tensor.numel() for tensor in tensors.values())), 1)
    magnitudes = torch.cat([tensor.abs().reshape(-1) for tensor in tensors.values()])
    threshold = float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)
    # Strictly above: more elements at the threshold than there is room for would be a choice; zeros are never sent.
    missing = count - int((magnitudes > threshold).sum())
    found = {}
    for name, tensor in tensors.items():
        mask = (tensor.abs() > threshold).reshape(-1)
        ties = (tensor.abs().reshape(-1) == threshold).nonzero().squeeze(1)[:missing]
        missing -= len(ties)
        mask[ties] = True
        mask &= tensor.reshape(-1) != 0
        found[name] = SparseTensor.from_mask(tensor, mask.view_as(tensor))
    return found

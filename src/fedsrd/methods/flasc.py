"""FLASC: the largest weights down, the largest changes up, dense training in between, Adam at the server.

Kuo et al., "Federated LoRA with Sparse Communication" (arXiv 2406.05233). The server holds the dense factors theta; a
client gets theta's elements of largest magnitude (zeros elsewhere), trains all of them, and sends its largest changes;
the server takes their mean as a gradient for Adam (FedAdam, Reddi et al., arXiv 2003.00295). Shares are of the whole
adapter, not of each matrix. As everybody can draw the common start, the first round's download is the whole start.

What clients hold is the sparse download; what is evaluated and kept is theta, which never travels whole.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsrd.core.factors import Delta, Factors, LoraPair, Slot, SparseTensor, add_weighted, difference, slots
from fedsrd.methods.method import ClientStep, Memory, Method, MethodOptions, ServerStep, Step, register

Share = Annotated[float, Field(gt=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class FLASCOptions(MethodOptions):
    """Options.

    Attributes:
        down: share of the adapter's elements in a download (the paper: 1/4).
        up: share of the adapter's elements in an upload (the paper: 1/4).
        server_lr: Adam's rate at the server.
        beta1: decay of its first moment.
        beta2: decay of its second moment.
        epsilon: added to the root of the second moment; as large as FedAdam's authors take it, so that an element on
            which clients do not agree moves little.
    """

    down: Share = 0.25
    up: Share = 0.25
    server_lr: Annotated[float, Field(gt=0)] = 2e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-3


@register
class FLASC(Method):
    """Top changes up, top weights down."""

    name = "flasc"
    summary = "largest weights down, largest changes up, Adam at the server"
    Options = FLASCOptions
    server_model = True
    options: FLASCOptions

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The adapter's largest changes."""
        return largest(dict(difference(after, before)), self.options.up)

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """One step of Adam on theta, and theta's largest elements."""
        o = self.options
        made: dict[Slot, Tensor] = {}
        for slot, theta in slots(self.model(state, step.memory)):
            mean = add_weighted(torch.zeros(theta.shape), slot, deltas, weights)
            first = _kept(step.memory, slot, "m", mean) * o.beta1 + (1 - o.beta1) * mean
            second = _kept(step.memory, slot, "v", mean) * o.beta2 + (1 - o.beta2) * mean.square()
            rate = o.server_lr / (1 - o.beta1**step.round)
            root = (second / (1 - o.beta2**step.round)).sqrt_()
            made[slot] = theta + rate * first / (root + o.epsilon)
            step.memory.update({_key(slot, "m"): first, _key(slot, "v"): second, _key(slot, "theta"): made[slot]})
        return largest(made, o.down)

    def apply(self, state: Factors, broadcast: Delta, step: Step) -> dict[str, LoraPair]:
        """The download itself, zeros elsewhere."""
        found = {
            slot: broadcast[slot].dense() if slot in broadcast else torch.zeros_like(t) for slot, t in slots(state)
        }
        return {name: LoraPair(found[Slot(name, "B")], found[Slot(name, "A")]) for name in state}

    def model(self, state: Factors, memory: Memory) -> Factors:
        """Theta; before the first round the common start."""
        return {
            name: LoraPair(
                memory.get(_key(Slot(name, "B"), "theta"), pair.B), memory.get(_key(Slot(name, "A"), "theta"), pair.A)
            )
            for name, pair in state.items()
        }


def largest(tensors: Mapping[Slot, Tensor], share: float) -> Delta:
    """The elements of largest magnitude of all tensors together: a `share` of all, and at least one."""
    count = max(round(share * sum(tensor.numel() for tensor in tensors.values())), 1)
    magnitudes = torch.cat([tensor.abs().reshape(-1) for tensor in tensors.values()])
    threshold = float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)
    # Strictly above: more elements at the threshold than there is room for would be a choice; zeros are never sent.
    missing = count - int((magnitudes > threshold).sum())
    found = {}
    for slot, tensor in tensors.items():
        mask = (tensor.abs() > threshold).reshape(-1)
        ties = (tensor.abs().reshape(-1) == threshold).nonzero().squeeze(1)[:missing]
        missing -= len(ties)
        mask[ties] = True
        mask &= tensor.reshape(-1) != 0
        found[slot] = SparseTensor.from_mask(tensor, mask.view_as(tensor))
    return found


def _key(slot: Slot, what: str) -> str:
    return f"{what}/{slot.module}/{slot.factor}"


def _kept(memory: Memory, slot: Slot, what: str, like: Tensor) -> Tensor:
    return memory.get(_key(slot, what), torch.zeros_like(like))

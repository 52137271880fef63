"""A method with error feedback at both ends, for tests: what is not sent is added to what is sent next.

The literature's form (Karimireddy et al., arXiv 1901.09847; Tang et al., "DoubleSqueeze", arXiv 1905.05957): a client
compresses its change plus its residual and keeps the rest; the server does so with the aggregate. What either end keeps
is what the receiver will not decode of it, rounding included, so over any number of rounds nothing is lost.

Tests that go through every method are not to meet it: it is known only inside `registered`.
"""

import contextlib

import torch

from fedsrd.core.tensors import SparseTensor, average, difference
from fedsrd.methods import Method, registry

SHARE = 0.25
RESIDUAL = "residual/"


def largest(tensor):
    """The largest quarter of a tensor's elements by magnitude, sparse; zeros are never sent."""
    count = max(round(SHARE * tensor.numel()), 1)
    threshold = float(tensor.abs().reshape(-1).kthvalue(tensor.numel() - count + 1).values)
    return SparseTensor.from_mask(tensor, (tensor.abs() >= threshold) & (tensor != 0))


def fed_back(changes, context):
    """What is sent of changes plus residual, and what is kept: all that the receiver will not decode."""
    e = {name: context.memory.get(RESIDUAL + name, torch.zeros_like(change)) + change for name, change in changes}
    sent = {name: largest(tensor) for name, tensor in e.items()}
    arrives = context.received(sent)
    kept = {
        RESIDUAL + name: tensor - arrives[name].dense() if name in arrives else tensor for name, tensor in e.items()
    }
    return sent, kept


class Feedback(Method):
    """Error feedback up and down."""

    name = "error-feedback"
    summary = "for tests: the largest quarter, both ways, with error feedback"
    keeps_client_state = True

    def client_update(self, plan, after, context):
        return fed_back(difference(after, plan.start), context)

    def server_update(self, state, contributions, context):
        names = list(state.tensors)
        mean = average(names, [one.delta for one in contributions], [one.weight for one in contributions])
        whole = ((n, mean[n].dense() if n in mean else torch.zeros_like(state.tensors[n])) for n in names)
        return fed_back(whole, context)


@contextlib.contextmanager
def registered():
    """Makes the method known under its name, for whoever builds it from a recipe or a job."""
    registry.register(Feedback)
    try:
        yield Feedback
    finally:
        del registry._REGISTRY[Feedback.name]

"""FedICU-style: clients send the more important half, the server weighs what they agree and disagree on.

After Liao et al., "Splitting with Importance-aware Updating for Heterogeneous Federated Learning with Large Language
Models", ICML 2025 (PMLR 267). Its public description names two parts: client updates are split into consensus and
divergence, balanced by their contribution, and clients send their important parameters only. The exact formulas are not
given there, so this is *in its style*, not a reproduction, and its results say nothing final about FedICU. Here:

    client:  the half of each matrix with the largest importance (as FedSRD's, sparsify.py)
    server:  consensus c = sum p_i delta_i,  divergence d_i = delta_i - c  of each matrix
             update = c + divergence sum q_i d_i  with q_i proportional to p_i (1 + ||d_i|| / (||d_i|| + ||c||))

As sum p_i d_i = 0, the second term moves towards the clients that diverge most, each of which counts at most twice; it
is zero where all agree.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import Field

from fedsrd.core import sparsify
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, add_weighted, dense_delta, difference
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodOptions, MethodState, ServerContext, mean
from fedsrd.methods.registry import register


class FedICUOptions(MethodOptions):
    """Options.

    Attributes:
        keep: share of each matrix's elements that a client sends.
        divergence: weight of the clients' divergence; 0 gives the consensus alone.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    divergence: Annotated[float, Field(ge=0, le=1e6)] = 1.0


@register
class FedICUStyle(Method):
    """Important half up, consensus plus weighed divergence down."""

    name = "fedicu-style"
    summary = "important half up; consensus and divergence weighed (after FedICU, not a reproduction)"
    Options = FedICUOptions
    options: FedICUOptions

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The more important elements of dB and dA, as they are."""
        before = plan.start
        if self.options.keep == 1.0:
            return dense_delta(after, before), {}
        return {
            name: sparsify.prune(delta, sparsify.importance(name, delta, before, after), 1.0 - self.options.keep)
            for name, delta in difference(after, before)
        }, {}

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """Consensus plus weighed divergence, at the elements that any client sent."""
        deltas = [one.delta for one in contributions]
        for name, average in mean(state, contributions).items():
            consensus = average.dense()
            size = _norm(consensus)
            shares = []
            for one in contributions:
                distance = _norm(one.delta[name].dense() - consensus) if name in one.delta else size
                shares.append(one.weight * (1 + distance / (distance + size)) if distance else one.weight)
            # sum q_i d_i = sum q_i delta_i - c, because sum q_i = 1.
            total = consensus * (1 - self.options.divergence)
            pull = self.options.divergence / sum(shares)
            add_weighted(total, name, deltas, [pull * share for share in shares])
            flat = total.reshape(-1)
            values = flat if average.positions is None else flat[average.positions]
            yield name, SparseTensor(average.shape, average.positions, values)


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))

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

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from fedsrd.core import sparsify
from fedsrd.core.factors import Delta, Factors, SparseTensor, add_weighted, average, dense_delta, difference
from fedsrd.methods.method import ClientStep, Method, MethodOptions, ServerStep, register


class FedICUOptions(MethodOptions):
    """Options.

    Attributes:
        keep: share of each matrix's elements that a client sends.
        divergence: weight of the clients' divergence; 0 gives the consensus alone.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    divergence: Annotated[float, Field(ge=0)] = 1.0


@register
class FedICUStyle(Method):
    """Important half up, consensus plus weighed divergence down."""

    name = "fedicu-style"
    summary = "important half up; consensus and divergence weighed (after FedICU, not a reproduction)"
    Options = FedICUOptions
    options: FedICUOptions

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The more important elements of dB and dA, as they are."""
        if self.options.keep == 1.0:
            return dense_delta(after, before)
        return {
            slot: sparsify.prune(delta, sparsify.importance(slot, delta, before, after), 1.0 - self.options.keep)
            for slot, delta in difference(after, before)
        }

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """Consensus plus weighed divergence, at the elements that any client sent."""
        result = {}
        for slot, mean in average(state, deltas, weights).items():
            consensus = mean.dense()
            size = _norm(consensus)
            shares = []
            for delta, weight in zip(deltas, weights, strict=True):
                distance = _norm(delta[slot].dense() - consensus) if slot in delta else size
                shares.append(weight * (1 + distance / (distance + size)) if distance else weight)
            # sum q_i d_i = sum q_i delta_i - c, because sum q_i = 1.
            total = consensus * (1 - self.options.divergence)
            pull = self.options.divergence / sum(shares)
            add_weighted(total, slot, deltas, [pull * share for share in shares])
            flat = total.reshape(-1)
            values = flat if mean.positions is None else flat[mean.positions]
            result[slot] = SparseTensor(mean.shape, mean.positions, values)
        return result


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))

"""FlexLoRA: average the full updates, take their singular value decomposition, send factors back.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", NeurIPS
2024 (arXiv 2402.11505): W = sum p_i B_i A_i, W = U S V^T, new B = U S and A = V^T, of which a client takes as many
components as its rank. The decomposition is taken of the factors, exactly, without building W
(core/reconstruct.py). A client's own scale alpha / r_i is not part of this: all share the adapter's.
"""

from collections.abc import Sequence

import torch

from fedsrd.core.factors import FACTORS, Delta, Factors, LoraPair, Slot, SparseTensor
from fedsrd.core.reconstruct import LowRank, best_pair
from fedsrd.methods.method import ServerStep, register
from fedsrd.methods.ranks import AnyRank, truncated_pair


@register
class FlexLoRA(AnyRank):
    """Dense deltas up; the best rank-r approximation of mean(B A) down, as a dense change of both factors.

    Singular values fall, so the components that a client of a lower rank takes are the largest.
    """

    name = "flexlora"
    summary = "mean of the full updates, truncated SVD; clients of different ranks"

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """U S - B and V^T - A, module by module."""
        ranks = step.ranks or [None] * len(deltas)
        change: dict[Slot, SparseTensor] = {}
        for name, pair in state.items():
            lefts, rights = [], []
            for delta, weight, rank in zip(deltas, weights, ranks, strict=True):
                own = client_pair(name, pair, delta, rank)
                lefts.append(weight * own.B.double())
                rights.append(own.A.double())
            best = best_pair(LowRank(torch.cat(lefts, 1), torch.cat(rights, 0)), len(pair.A))
            change[Slot(name, "B")] = SparseTensor.from_dense(best.B - pair.B)
            change[Slot(name, "A")] = SparseTensor.from_dense(best.A - pair.A)
        return change


def client_pair(module: str, pair: LoraPair, delta: Delta, rank: int | None) -> LoraPair:
    """A client's factors after training: what it started from plus what it sent."""
    start = truncated_pair(pair, rank)
    parts = []
    for factor, tensor in zip(FACTORS, start, strict=True):
        sent = delta.get(Slot(module, factor))
        parts.append(tensor if sent is None else tensor + sent.dense())
    return LoraPair(*parts)

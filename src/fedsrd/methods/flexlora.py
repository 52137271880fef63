"""FlexLoRA: average the full updates, take their singular value decomposition, send factors back.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", NeurIPS
2024 (arXiv 2402.11505): W = sum p_i B_i A_i, W = U S V^T, new B = U S and A = V^T, of which a client takes as many
components as its rank. The decomposition is taken of the factors, exactly, without building W
(core/reconstruct.py). A client's own scale alpha / r_i is not part of this: all share the adapter's.
"""

from collections.abc import Sequence

import torch

from fedsrd.core import lora
from fedsrd.core.lora import FACTORS, LoraPair, tensor_name
from fedsrd.core.reconstruct import LowRank, best_pair
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor
from fedsrd.methods.method import Contribution, MethodState, ServerContext
from fedsrd.methods.ranks import AnyRank, truncated_pair
from fedsrd.methods.registry import register


@register
class FlexLoRA(AnyRank):
    """Dense deltas up; the best rank-r approximation of mean(B A) down, as a dense change of both factors.

    Singular values fall, so the components that a client of a lower rank takes are the largest.
    """

    name = "flexlora"
    summary = "mean of the full updates, truncated SVD; clients of different ranks"

    @property
    def makes_steps(self) -> bool:
        """No: the broadcast turns the factors into others."""
        return False

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """U S - B and V^T - A, module by module."""
        change: dict[str, SparseTensor] = {}
        for module, pair in lora.pairs_of(state.tensors).items():
            own = [client_pair(module, pair, one) for one in contributions]
            lefts = [one.weight * found.B.double() for one, found in zip(contributions, own, strict=True)]
            rights = [found.A.double() for found in own]
            best = best_pair(LowRank(torch.cat(lefts, 1), torch.cat(rights, 0)), len(pair.A))
            change[tensor_name(module, "B")] = SparseTensor.from_dense(best.B - pair.B)
            change[tensor_name(module, "A")] = SparseTensor.from_dense(best.A - pair.A)
        return change, {}


def client_pair(module: str, pair: LoraPair, contribution: Contribution) -> LoraPair:
    """A client's factors after training: what it started from plus what it sent."""
    start = truncated_pair(pair, contribution.rank)
    parts = []
    for factor, tensor in zip(FACTORS, start, strict=True):
        sent = contribution.delta.get(tensor_name(module, factor))
        parts.append(tensor if sent is None else tensor + sent.dense())
    return LoraPair(*parts)

"""The paper read plainly, the counterpart of what is measured: full matrices, library SVDs, sorts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsrd.core.lora import LoraPair, tensor_name
from fedsrd.core.tensors import Delta


def server_step(
    module: str, pair: LoraPair, deltas: Sequence[Delta], weights: Sequence[float], odd: bool, rank: int | None
) -> Tensor:
    """W = sum p_i (B + dB_i)(A + dA_i) as an (out, in) matrix; its truncated SVD; times a pseudo-inverse."""
    W = torch.zeros(pair.B.shape[0], pair.A.shape[1], dtype=pair.B.dtype)
    for delta, weight in zip(deltas, weights, strict=True):
        dB, dA = delta[tensor_name(module, "B")].dense(), delta[tensor_name(module, "A")].dense()
        W += weight * (pair.B + dB) @ (pair.A + dA)
    if rank is not None:
        u, s, vh = torch.linalg.svd(W, full_matrices=False)
        W = u[:, :rank] * s[:rank] @ vh[:rank]
    change = W - pair.B @ pair.A
    return change @ torch.linalg.pinv(pair.A) if odd else torch.linalg.pinv(pair.B) @ change


def sparsify(delta: Tensor, norms: Tensor, alpha: float = 0.85) -> Tensor:
    """Importance, kurtosis, quantile by a sort, mask and L1 rescale of one matrix, all dense."""
    scores = delta.abs() * norms
    centred = scores - scores.mean()
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    ratio = min(float(alpha + min(0.1 * torch.log(kurtosis), 0.11)), 0.99)
    ordered = scores.flatten().sort().values
    threshold = ordered[int(ratio * (len(ordered) - 1))]
    kept = torch.where(scores > threshold, delta, 0.0)
    return kept * (delta.abs().sum() / kept.abs().sum())

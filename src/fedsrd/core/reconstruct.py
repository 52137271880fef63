"""Reconstruct (server): aggregate the clients' full weights exactly, without ever building one (arXiv 2510.04601, 4.2).

Averaging B and A separately is not averaging their products. FedSRD averages W_i = (B + dB_i)(A + dA_i). Each W_i has
rank r, so W = sum_i p_i W_i is the product of a tall and a wide matrix of inner size m r; (out, in) is never allocated.
For m clients, one module costs O((out + in) m r) memory and as much time.

Everything here is float64: the step is a small difference of large products, and these matrices are small.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsrd.core.factors import LoraPair


class LowRank(NamedTuple):
    """The matrix left @ right, kept as its two factors: left (out_features, k), right (k, in_features), float64."""

    left: Tensor
    right: Tensor

    def __add__(self, other: "LowRank") -> "LowRank":  # type: ignore[override]
        """The sum of the two matrices; inner sizes add up."""
        return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 0))


def mean_change(pair: LoraPair, deltas: Sequence[LoraPair], weights: Sequence[float]) -> LowRank:
    """sum_i p_i W_i - B A, from the deltas alone: the big product B A cancels on paper, not in floating point.

    Uses (B + dB_i)(A + dA_i) - B A = dB_i A + (B + dB_i) dA_i and sum p_i = 1. Inner size (m + 1) r.

    Args:
        pair: the global B (out_features, r) and A (r, in_features).
        deltas: each client's dense (dB_i, dA_i), shapes as `pair`.
        weights: p_i, positive, with sum 1.
    """
    B, A = pair.B.double(), pair.A.double()
    mean_dB = torch.zeros_like(B)
    lefts, rights = [], []
    for (dB, dA), weight in zip(deltas, weights, strict=True):
        mean_dB.add_(dB, alpha=weight)
        lefts.append(weight * (B + dB))
        rights.append(dA.double())
    return LowRank(torch.cat([mean_dB, *lefts], 1), torch.cat([A, *rights], 0))


def mean_weight(pair: LoraPair, deltas: Sequence[LoraPair], weights: Sequence[float]) -> LowRank:
    """W = sum_i p_i (B + dB_i)(A + dA_i) itself. Arguments as `mean_change`; inner size m r."""
    B, A = pair.B.double(), pair.A.double()
    lefts = [weight * (B + dB) for (dB, _), weight in zip(deltas, weights, strict=True)]
    return LowRank(torch.cat(lefts, 1), torch.cat([A + dA for _, dA in deltas], 0))


def project(matrix: LowRank, rank: int) -> LowRank:
    """The best approximation of `matrix` of rank `rank` (truncated SVD; Eckart and Young, 1936), exact.

    With left = Q_l T_l and right^T = Q_r T_r (thin QR), matrix = Q_l (T_l T_r^T) Q_r^T, and the SVD of the small middle
    is the SVD of the whole. Costs O((out + in) k^2 + k^3) time for inner size k, O((out + in) k) memory.

    Args:
        matrix: the matrix to approximate, inner size k >= 1.
        rank: inner size of the result, at most min(out_features, in_features).
    """
    q_left, t_left = torch.linalg.qr(matrix.left)
    q_right, t_right = torch.linalg.qr(matrix.right.T)
    u, s, vh = torch.linalg.svd(t_left @ t_right.T, full_matrices=False)
    return LowRank(q_left @ (u[:, :rank] * s[:rank]), vh[:rank] @ q_right.T)

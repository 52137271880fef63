"""Decompose (server): turn the change of the full weight into a sparse change of one factor (arXiv 2510.04601, 4.3).

Rounds count from 1. With R the change that B A should make, odd rounds move B and even rounds move A:

    odd:   dB = R A^+,  dA = 0           even:  dA = B^+ R,  dB = 0

B comes first: it starts at zero, and the pseudo-inverse of zero would learn nothing. The moved factor is then
sparsified at random (keep with probability 1 - p, divide by 1 - p), which leaves its expectation as it was.
"""

import torch
from torch import Tensor

from fedsrd.core.factors import Draw, Factor, LoraPair, Slot, SparseTensor
from fedsrd.core.reconstruct import LowRank


def factor_of_round(round_number: int) -> Factor:
    """The factor that moves in a round: B in odd rounds, A in even ones.

    >>> [factor_of_round(t) for t in (1, 2, 3)]
    ['B', 'A', 'B']
    """
    return "B" if round_number % 2 else "A"


def pseudo_inverse(matrix: Tensor, cutoff: float = 1e-6, damping: float = 0.0) -> Tensor:
    """Moore-Penrose pseudo-inverse of an (n, k) matrix as (k, n) float64, made tame for nearly singular ones.

    Args:
        matrix: any real matrix, all finite; a zero matrix gives zeros.
        cutoff: singular values at or below `cutoff` times the largest count as zero.
        damping: 0 for none; else 1/s becomes s / (s^2 + (damping s_max)^2), which bounds the result's norm by
            1 / (2 damping s_max).

    >>> pseudo_inverse(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    largest = s.max()
    damped = s / (s.square() + (damping * largest).square())
    inverse: Tensor = (vh.T * torch.where(s > cutoff * largest, damped, 0.0)) @ u.T
    return inverse


def alternate(change: LowRank, pair: LoraPair, factor: Factor, cutoff: float = 1e-6, damping: float = 0.0) -> Tensor:
    """The change of one factor that comes nearest to changing B A by `change`, the other factor staying as it is.

    Costs O((out + in) k r) for inner size k of `change`; no (out_features, in_features) matrix is built.

    Args:
        change: R = W - B A, (out_features, in_features), factored.
        pair: the global B (out_features, r) and A (r, in_features).
        factor: which of the two moves.
        cutoff: as `pseudo_inverse`.
        damping: as `pseudo_inverse`.

    Returns:
        dB = R A^+ (out_features, r) or dA = B^+ R (r, in_features), float32.
    """
    if factor == "B":
        return (change.left @ (change.right @ pseudo_inverse(pair.A, cutoff, damping))).float()
    return ((pseudo_inverse(pair.B, cutoff, damping) @ change.left) @ change.right).float()


def sparsify_at_random(delta: Tensor, slot: Slot, seed: int, keep: float) -> SparseTensor:
    """Each element of `delta` with probability `keep`, divided by `keep`, so that the expectation is `delta` itself.

    Args:
        delta: (rows, columns) float32.
        slot: where it belongs; every slot draws on its own.
        seed: of the draw, 0 <= seed < 2**64.
        keep: 1 - p, in (0, 1]; at 1 everything stays.

    Raises:
        ValueError: `keep` is not in (0, 1].
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep {keep}: expected 0 < keep <= 1 (a download sparsity in [0, 1))")
    if keep == 1.0:
        return SparseTensor.from_dense(delta)
    return SparseTensor.from_draw(delta / keep, slot, Draw(seed, keep))

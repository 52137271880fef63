"""Decompose (server): turn the change of the full weight into a sparse change of one factor (arXiv 2510.04601, 4.3).

Rounds count from 1. With R the change that B A should make, odd rounds move B and even rounds move A:

    odd:   dB = R A^+,  dA = 0           even:  dA = B^+ R,  dB = 0

B comes first: it starts at zero, and the pseudo-inverse of zero would learn nothing. The moved factor is then
sparsified at random (keep with probability 1 - p, divide by 1 - p), which leaves its expectation as it was.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedsrd.core.lora import Factor
from fedsrd.core.reconstruct import LowRank, Mean, project
from fedsrd.core.tensors import Draw, SparseTensor

SMALLEST = 1e-24  # squared magnitudes that float32 products can hold, and their reciprocals
WORST = 1e-4  # singular values, of the largest: below, the Gram matrix has lost them
BAD = 1e-2  # below, float32 products with the inverse lose more than 1e-5
TOLERANCE = 5e-6  # of the projection, of the step's norm
MOST_ITERATIONS = 40


def factor_of_round(round_number: int) -> Factor:
    """The factor that moves in a round: B in odd rounds, A in even ones.

    >>> "".join(factor_of_round(t) for t in (1, 2, 3))
    'BAB'
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


class Inverse(NamedTuple):
    """A pseudo-inverse in float32, with what it makes of its own matrix.

    Attributes:
        matrix: M^+ (k, r).
        own: M M^+ (r, r): the identity, but for damping.
    """

    matrix: Tensor
    own: Tensor


def quick_pseudo_inverse(wide: Tensor, cutoff: float, damping: float) -> Inverse | None:
    """The pseudo-inverse of an (r, k) matrix M, r <= k, by its Gram matrix G = M M^T.

    M^+ = M^T G^-1, damped M^T (G + d^2 s_max^2)^-1: one product of O(r^2 k) and an r by r problem, a twentieth of the
    SVD's time. Squaring costs half of the digits, so precision follows the conditioning: float32 while the eigenvalues
    of G lie within a factor of 20, else float64, down to singular values of 1e-4 of the largest.

    Returns:
        None where the matrix is worse conditioned, or too large or small for float32; use `pseudo_inverse`.
    """
    if cutoff > WORST:
        return None
    gram = (wide @ wide.T).double()
    found = _gram_inverse(gram, damping)
    if found is None or found[1] < 0.05:
        # Accurate enough to be recognised, not to be used.
        exact = wide.double()
        gram = exact @ exact.T
        found = _gram_inverse(gram, damping)
    # The ratio may be a factor r too large: what is left above `cutoff` for certain, the cutoff need not touch.
    if found is None or found[1] <= WORST**2 * len(gram):
        return None
    inverse, condition = found
    own = (gram @ inverse).float()
    if condition > BAD**2:
        return Inverse(wide.T @ inverse.float(), own)
    # The inverse is large and mostly cancels in the product: float32 would keep too little of it.
    return Inverse((wide.double().T @ inverse).float(), own)


def _gram_inverse(gram: Tensor, damping: float) -> tuple[Tensor, float] | None:
    """(G + damping^2 s_max^2)^-1, and about the ratio of G's extreme eigenvalues; None where G is singular.

    By Cholesky, a tenth of the time of eigenvalues. The ratio is r / (|G| |G^-1|) in Frobenius norms: exact for equal
    eigenvalues, and within a factor of r.
    """
    lower, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    ratio = 1.0 / (float(gram.norm()) * float(inverse.norm()))
    top = float(gram.diagonal().max())
    if not SMALLEST < top < 1 / SMALLEST:
        return None
    if damping:
        largest = torch.linalg.eigvalsh(gram)[-1]
        inverse = torch.linalg.inv(gram + damping**2 * largest * torch.eye(len(gram), dtype=gram.dtype))
    return inverse, ratio * len(gram)


def alternate(mean: Mean, factor: Factor, rank: int | None, cutoff: float = 1e-6, damping: float = 0.0) -> Tensor:
    """The change of one factor that comes nearest to making B A into the mean weight W, the other factor staying.

    FedSRD-e takes W as it is, FedSRD its best approximation of rank r. No (out_features, in_features) matrix is built.

    Args:
        mean: W of one module.
        factor: which factor moves.
        rank: of the approximation of W; None for none.
        cutoff: as `pseudo_inverse`.
        damping: as `pseudo_inverse`.

    Returns:
        dB = (W - B A) A^+ (out_features, r) or dA = B^+ (W - B A) (r, in_features), float32.
    """
    other = mean.pair.A if factor == "B" else mean.pair.B.T
    inverse = quick_pseudo_inverse(other, cutoff, damping) if other.shape[0] <= other.shape[1] else None
    step = None if inverse is None else _quick_step(mean, inverse, factor, rank)
    if step is None:
        return _careful_step(mean, factor, rank, cutoff, damping)
    return step if factor == "B" else step.T


def _careful_step(mean: Mean, factor: Factor, rank: int | None, cutoff: float, damping: float) -> Tensor:
    pair = mean.pair
    change = mean.careful(change=rank is None)
    if rank is not None:
        change = project(change, rank) + LowRank(-pair.B.double(), pair.A.double())
    if factor == "B":
        return (change.left @ (change.right @ pseudo_inverse(pair.A, cutoff, damping))).float()
    return ((pseudo_inverse(pair.B, cutoff, damping) @ change.left) @ change.right).float()


def _quick_step(mean: Mean, inverse: Inverse, factor: Factor, rank: int | None) -> Tensor | None:
    """The step in the moving factor's own orientation, (features, r); None where it cannot be had to tolerance."""
    step = mean.change_times(inverse.matrix, inverse.own, factor)
    size = _norm(step)
    if not math.isfinite(size):
        return None
    if rank is None or size == 0.0:
        return step
    lost = _lost_to_projection(mean, inverse.matrix, factor, TOLERANCE * size)
    return None if lost is None else step.sub_(lost)


def _lost_to_projection(mean: Mean, inverse: Tensor, factor: Factor, tolerance: float) -> Tensor | None:
    """What the projection of W to rank r takes away from the step: (I - U U^T) W P, with U the r leading left singular
    vectors of W and P = A^+.

    With B' and A' the averages of the clients' factors, W = B' A' + C, where C = sum p_i (dB_i - mean dB)(dA_i - mean
    dA) is what the clients disagree on: of second order, and a product of sparse matrices. Subspace iteration from A'^T
    keeps both bases as B' and A'^T plus something small:

        D = C V (A' V)^-1,   Z = B' + D;        E = C^T Z (B'^T Z)^-1,   V = A'^T + E,

    and because (I - U U^T) Z = 0, what is lost is (I - U U^T)(C P - D A' P): small numbers only, so that float32 will
    do. An iteration multiplies the error by (s_(r+1) / s_r)^2.

    For the even rounds everything is transposed: A' for B', B^+ for A^+.

    Returns:
        (n, r), or None where the iteration does not come to `tolerance` (Frobenius norm).
    """
    moving, other = mean.averages(factor)
    rank = other.shape[1]
    through = other.T @ inverse
    both = mean.disagreement_times(torch.cat([inverse, other], 1), factor)
    spread, of_right = both[:, :rank].contiguous(), both[:, rank:].contiguous()
    right, lost, before = other, torch.zeros_like(spread), 0.0
    for iteration in range(MOST_ITERATIONS):
        if iteration:
            of_right = mean.disagreement_times(right, factor)
        small = _divided(of_right, other.T @ right)
        if small is None:
            return None
        left = moving + small
        apart = torch.addmm(spread, small, through, alpha=-1)
        inside, failed = torch.linalg.solve_ex((left.T @ left).double(), (left.T @ apart).double())
        if failed:
            return None
        found = torch.addmm(apart, left, inside.float(), alpha=-1)
        moved = _norm(lost.sub_(found))
        lost = found
        # Changes shrink by a steady ratio, and those to come sum up to moved * ratio / (1 - ratio). The first may be
        # small by chance and says nothing of it, unless clients agree and there is nothing to lose.
        ratio = min(moved / before, 1.0) if before else float(moved > 0.0)
        if moved * ratio <= tolerance * (1.0 - ratio):
            return lost
        before = moved
        back = _divided(mean.disagreement_times(left, "A" if factor == "B" else "B"), moving.T @ left)
        if back is None:
            return None
        right = other + back
    return None


def _divided(thin: Tensor, square: Tensor) -> Tensor | None:
    """Thin @ square^-1 for (n, r) and (r, r), the inverse in float64; None where there is none to float32."""
    inverse, failed = torch.linalg.inv_ex(square.double())
    quotient = inverse.float()
    if failed or not torch.isfinite(quotient.sum()):
        return None
    divided: Tensor = thin @ quotient
    return divided


def _norm(matrix: Tensor) -> float:
    """Frobenius norm; in float64 where the squares of float32 numbers vanish or overflow."""
    quick = float(torch.linalg.vector_norm(matrix))
    if 1e-15 < quick < 1e15:
        return quick
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def sparsify_at_random(delta: Tensor, name: str, seed: int, keep: float) -> SparseTensor:
    """Each element of `delta` with probability `keep`, divided by `keep`, so that the expectation is `delta` itself.

    Args:
        delta: float32.
        name: the tensor that it changes; every tensor draws on its own.
        seed: of the draw, 0 <= seed < 2**64.
        keep: 1 - p, in (0, 1]; at 1 everything stays.

    Raises:
        ValueError: `keep` is not in (0, 1].
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep {keep}: expected 0 < keep <= 1 (a download sparsity in [0, 1))")
    if keep == 1.0:
        return SparseTensor.from_dense(delta)
    drawn = SparseTensor.from_draw(delta, name, Draw(seed, keep))
    return SparseTensor(drawn.shape, drawn.positions, drawn.values / keep, drawn.draw)

"""Aggregates that a few lying clients cannot move far, from the clients' inner products alone, or element by element.

Krum and Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757) choose, the geometric median (RFA, Pillutla et
al., arXiv 1912.13445) reweighs: both need only how far updates are from each other, which a Gram matrix says, so they
work in any space that has an inner product. For LoRA that is the space of full weights: the change that client i makes
there is D_i = (B + dB_i)(A + dA_i) - B A = P_i Q_i with P_i = [dB_i, B + dB_i] and Q_i = [A; dA_i], and

    <D_i, D_j> = sum of (P_i^T P_j) * (Q_i Q_j^T), element by element,

which never makes a product of the weights' size, and subtracts nothing large from anything large. The coordinate-wise
median and trimmed mean (Yin et al., arXiv 1803.01498) need the updates themselves, at the same elements.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsrd.core import lora
from fedsrd.core.tensors import Delta, Tensors


def gram(state: Tensors, deltas: Sequence[Delta]) -> Tensor:
    """Inner products of the clients' changes: (n, n) float64. Of LoRA's pairs, in the space of full weights; of other
    tensors, as they are. An element that a client did not send is zero.

    Args:
        state: the tensors that the changes build on.
        deltas: one a client.
    """
    found = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    seen: set[str] = set()
    for module, pair in lora.pairs_of(state).items():
        names = {factor: lora.tensor_name(module, factor) for factor in lora.FACTORS}
        seen |= set(names.values())
        if any(name in delta for delta in deltas for name in names.values()):
            found += _of_pair(pair.B, pair.A, [_dense(delta, names["B"], pair.B) for delta in deltas],
                              [_dense(delta, names["A"], pair.A) for delta in deltas])  # fmt: skip
    for name, tensor in state.items():
        if name not in seen and any(name in delta for delta in deltas):
            flat = torch.stack([_dense(delta, name, tensor).reshape(-1) for delta in deltas])
            found += (flat @ flat.T).double()
    return found


def _dense(delta: Delta, name: str, like: Tensor) -> Tensor:
    return delta[name].dense() if name in delta else torch.zeros_like(like)


def _of_pair(B: Tensor, A: Tensor, moved_B: Sequence[Tensor], moved_A: Sequence[Tensor]) -> Tensor:
    # P_i^T P_j and Q_i Q_j^T by their blocks of rank by rank, of which only one each is of the pair: what is of one
    # client alone is multiplied once, not once for every other.
    whole_B, whole_A = (B.T @ B).double(), (A @ A.T).double()
    half_B = [(B.T @ dB).double() for dB in moved_B]
    half_A = [(A @ dA.T).double() for dA in moved_A]
    found = torch.zeros(len(moved_B), len(moved_B), dtype=torch.float64)
    for i in range(len(moved_B)):
        for j in range(i + 1):
            both_B = (moved_B[i].T @ moved_B[j]).double()
            both_A = (moved_A[i] @ moved_A[j].T).double()
            left, right = half_B[i].T + both_B, half_B[j] + both_B
            product = both_B * whole_A + left * half_A[j] + right * half_A[i].T
            product += (whole_B + left + half_B[j]) * both_A
            found[i, j] = found[j, i] = product.sum()
    return found


def distances(products: Tensor) -> Tensor:
    """Euclidean distances of all pairs: (n, n) float64, from their inner products."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()


def krum(apart: Tensor, liars: int) -> Tensor:
    """Krum's scores: the sum of squared distances to the n - liars - 2 nearest others. (n,) float64; least is best.

    Args:
        apart: (n, n) distances.
        liars: how many may lie; n is at least 2 liars + 3.
    """
    near = len(apart) - liars - 2
    others = apart.square().masked_fill(torch.eye(len(apart), dtype=torch.bool), torch.inf)
    return others.sort(1).values[:, :near].sum(1)


def chosen(scores: Tensor, count: int) -> list[int]:
    """The places of so many least scores, in order; of equal ones the first."""
    return sorted(scores.argsort(stable=True)[:count].tolist())


def geometric_median(products: Tensor, weights: Sequence[float], rounds: int = 1000, smoothing: float = 1e-6) -> Tensor:
    """Weights with which the updates' mean is their weighted geometric median: (n,) float64, with sum 1. Smoothed
    Weiszfeld (RFA's algorithm 2), whose iterates stay combinations of the updates.

    What the distance of two that are alike counts as, and when it is done, goes by the median length: no minority has a
    say in that, however far away it is.

    Args:
        products: (n, n) inner products, finite.
        weights: of the clients; positive, with sum 1.
        rounds: at most.
        smoothing: of the distances, relative to the updates' median length.
    """
    start = torch.tensor(weights, dtype=torch.float64)
    usual = float(products.diagonal().clamp(min=0).sqrt().median())
    least = max(smoothing * usual, torch.finfo(torch.float64).tiny)
    found = start
    for _ in range(rounds):
        mean = products @ found
        apart = (found @ mean - 2 * mean + products.diagonal()).clamp(min=0).sqrt().clamp(min=least)
        following = start / apart
        following = following / following.sum()
        step = following - found
        found = following
        if float((step @ products @ step).clamp(min=0).sqrt()) <= least:
            break
    return found


def trimmed_mean(values: Tensor, trim: int) -> Tensor:
    """The mean of each element's values without the `trim` smallest and largest. (n, elements) to (elements,)."""
    ordered = values.sort(0).values
    return ordered[trim : len(values) - trim].mean(0)


def median(values: Tensor) -> Tensor:
    """The median of each element's values, of an even number the mean of the two in the middle. (n, elements) to
    (elements,).
    """
    return trimmed_mean(values, (len(values) - 1) // 2)

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
    # P_i^T P_j and Q_i Q_j^T in blocks of r x r: of a pair of clients only dB_i^T dB_j and dA_i dA_j^T are new.
    count, r = len(moved_B), B.shape[1]
    left, right = torch.cat(list(moved_B), 1), torch.cat(list(moved_A), 0)
    old_B, old_A = (B.T @ B).double(), (A @ A.T).double()
    cross_B = (left.T @ B).double().reshape(count, r, r)
    cross_A = (right @ A.T).double().reshape(count, r, r)
    found = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        upto = (i + 1) * r
        both_B = (left[:, i * r : upto].T @ left[:, :upto]).double().reshape(r, i + 1, r).transpose(0, 1)
        both_A = (right[i * r : upto] @ right[:upto].T).double().reshape(r, i + 1, r).transpose(0, 1)
        mine, theirs = cross_B[i] + both_B, cross_B[: i + 1].mT
        products = both_B * old_A + mine * cross_A[: i + 1].mT
        products += (theirs + both_B) * cross_A[i] + (old_B + theirs + mine) * both_A
        found[i, : i + 1] = found[: i + 1, i] = products.sum((1, 2))
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


def geometric_median(products: Tensor, weights: Sequence[float], rounds: int = 100, smoothing: float = 1e-6) -> Tensor:
    """Weights with which the updates' mean is their weighted geometric median: (n,) float64, with sum 1. Smoothed
    Weiszfeld (RFA's algorithm 2), whose iterates stay combinations of the updates.

    Args:
        products: (n, n) inner products.
        weights: of the clients; positive, with sum 1.
        rounds: at most.
        smoothing: of the distances, relative to the largest: two updates that are alike do not divide by nothing.
    """
    start = torch.tensor(weights, dtype=torch.float64)
    least = smoothing * float(distances(products).max())
    if least == 0:
        return start
    found = start
    for _ in range(rounds):
        mean = products @ found
        apart = (found @ mean - 2 * mean + products.diagonal()).clamp(min=0).sqrt().clamp(min=least)
        following = start / apart
        following = following / following.sum()
        done = float((following - found).abs().max()) < 1e-9
        found = following
        if done:
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

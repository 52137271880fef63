"""Sparsify (client): keep the elements of dB and dA that matter most for the full update (arXiv 2510.04601, section
4.1).

After local training the full weight moved by dB A + B' dA, with A from before and B' from after training. One element
therefore counts with its magnitude times the norm of the vector that it multiplies:

    I(dB[u, v]) = |dB[u, v]| * ||A[v, :]||        I(dA[u, v]) = |dA[u, v]| * ||B'[:, u]||

Each matrix has its own ratio of elements to drop, rho = alpha + 0.1 ln(kurtosis(I)): the heavier the tail, the more of
the update sits in few elements.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsrd.core import lora
from fedsrd.core.tensors import SparseTensor, Tensors

Rescale = Literal["l1", "none"]
Array = np.ndarray[Any, Any]

SAMPLE = 1 << 20
"""Scores, at least, among which a threshold is looked up."""
FIT, FITS = 0.01, 8
"""How near to the bytes that are wanted is near enough, and after how many measured sizes places are halved."""
KURTOSIS_SLOPE = 0.1
KURTOSIS_LIMIT = 0.11
"""The most that kurtosis adds to rho (the authors' program; the paper gives no bound). It never lowers it: kurtosis >=
1."""


def importance(name: str, delta: Tensor, before: Tensors, after: Tensors) -> Tensor:
    """How much each element of one tensor's delta moves the full weight. Same shape as `delta`, float32, >= 0.

    A tensor that is no LoRA factor multiplies nothing that is trained: its elements count with their magnitude.

    Args:
        name: the tensor that `delta` belongs to.
        delta: dB (out_features, rank), dA (rank, in_features), or the change of any other tensor.
        before: the tensors that training started from (its A is used).
        after: the tensors after training (its B is used).
    """
    module, factor = lora.split(name)
    if factor is None:
        return delta.abs()
    if factor == "B":
        norms: Tensor = torch.linalg.vector_norm(before[lora.tensor_name(module, "A")], dim=1)
        return delta.abs() * norms
    norms = torch.linalg.vector_norm(after[lora.tensor_name(module, "B")], dim=0)
    return delta.abs() * norms.unsqueeze(1)


def kurtosis(values: Tensor) -> float:
    """Pearson's kurtosis, E[(x - mean)^4] / var^2: 3 for a normal distribution. 3 too where all values are equal.

    Values without spread say nothing about tails, so they neither raise nor lower the ratio more than a normal would.

    >>> kurtosis(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    1.0
    """
    # Relative to the largest value: the fourth power of a tiny float32 number would be zero.
    largest = values.abs().max().item() if values.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return 3.0
    scaled = values / largest
    centred = scaled.sub_(scaled.mean(dtype=torch.float64).item())
    squares = centred.square_()
    variance = squares.mean(dtype=torch.float64).item()
    if variance < 1e-14:
        return 3.0
    return squares.square_().mean(dtype=torch.float64).item() / variance**2


def adaptive_ratio(scores: Tensor, alpha: float, upper: float) -> float:
    """Rho = alpha + 0.1 ln(kurtosis), the kurtosis term cut at 0.11 and rho at `upper`.

    Args:
        scores: the importance of one matrix's elements.
        alpha: base ratio in [0, 1) (the paper: 0.85 to 0.9).
        upper: largest ratio, below 1, so that every matrix sends something.
    """
    term = KURTOSIS_SLOPE * math.log(max(kurtosis(scores), 1.0))
    return min(alpha + min(term, KURTOSIS_LIMIT), upper)


def prune(delta: Tensor, scores: Tensor, ratio: float) -> SparseTensor:
    """Keeps the elements of `delta` whose score lies above the `ratio`-quantile of all scores.

    Of n elements these are n - 1 - floor(ratio (n - 1)), and at least one. Ties at the threshold go to the first
    positions, so that the count holds and every device chooses alike; an element that is zero is never kept.
    Costs one selection of O(n), no sort.

    Args:
        delta: any matrix, float32.
        scores: its elements' importance, same shape, no NaN.
        ratio: share to drop, 0 <= ratio < 1.

    Raises:
        ValueError: the ratio is not in [0, 1), the shapes differ, or a score is NaN or infinite.

    >>> prune(torch.tensor([[1.0, -4.0, 2.0, 3.0]]), torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 0.5).dense()
    tensor([[ 0., -4.,  0.,  3.]])
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"ratio {ratio}: expected 0 <= ratio < 1")
    if delta.shape != scores.shape:
        raise ValueError(f"scores {tuple(scores.shape)} for a delta {tuple(delta.shape)}: expected equal shapes")
    flat = scores.reshape(-1)
    if flat.numel() and not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(flat)):
        # A NaN would lose every comparison and vanish, as if nothing had been learnt.
        raise ValueError("scores with NaN or infinity: a client must check its update before it sparsifies")
    below = math.floor(ratio * (flat.numel() - 1))
    wanted = max(flat.numel() - 1 - below, 1)
    threshold = _order_statistic(flat, min(below, flat.numel() - 1))
    mask = flat > threshold
    missing = wanted - int(mask.count_nonzero())
    if missing > 0:
        mask[(flat == threshold).nonzero().squeeze(1)[:missing]] = True
    mask &= delta.reshape(-1) != 0
    return SparseTensor.from_mask(delta, mask)


def fitted(
    changes: Tensors, scores: Tensors, size: Callable[[Mapping[str, SparseTensor]], int], wanted: float
) -> dict[str, SparseTensor]:
    """The elements of highest score of all tensors together, so many that they take about `wanted` bytes.

    The threshold is looked up in a sorted sample of the scores until the size is within a hundredth of what is wanted:
    three or four sizes are measured. Where no number of elements comes so near, what takes less is given. Equal scores
    travel together or not at all, the highest ones always; zeros never travel.

    Args:
        changes: what there is to send, float32.
        scores: importance of every element, same shapes, >= 0, no NaN.
        size: bytes of a choice.
        wanted: bytes, above 0.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    thresholds = _thresholds(scores)
    nothing = size({})
    elements = sum(tensor.numel() for tensor in scores.values())
    # The place of a threshold is about the share of the elements that reach it. Those up to `low` take too little.
    low, high = -1, len(thresholds)
    place = int(len(thresholds) * _share_of_bits(min(8 * max(wanted - nothing, 0) / elements, 64.0)))
    below, measured = None, list[tuple[int, int]]()
    for tries in itertools.count(1):
        place = min(max(place, low + 1), high - 1)
        threshold = thresholds[place]
        found = _reaching(changes, scores, float(threshold))
        takes = size(found)
        if abs(takes - wanted) <= FIT * wanted:
            return found
        # Places of equal scores are one and the same choice.
        if takes < wanted:
            below, low = found, int(np.searchsorted(-thresholds, -threshold, "right")) - 1
        else:
            high = int(np.searchsorted(-thresholds, -threshold, "left"))
        if low + 1 >= high:
            break
        measured.append((place + 1, takes - nothing))
        place = (low + high) // 2 if tries >= FITS else _extrapolated(measured, wanted - nothing) - 1
    return found if below is None else below


def _extrapolated(measured: Sequence[tuple[int, int]], wanted: float) -> int:
    """How many elements take so many bytes, by the power law through the last two points (elements, bytes), or by
    proportion.
    """
    elements, takes = measured[-1]
    if takes <= 0:
        return 2 * elements
    if wanted <= 0:
        return 0
    power = 1.0
    if len(measured) > 1 and measured[-2][1] > 0 and measured[-2][1] != takes:
        other, took = measured[-2]
        # Sizes that hardly change, as in a payload of a few bytes, say little about the next ones.
        power = min(max(math.log(elements / other) / math.log(takes / took), 0.5), 2.0)
    return int(min(elements * (wanted / takes) ** power, 2.0**62))


def _thresholds(scores: Tensors) -> Array:
    """A sample of all scores, from the highest to 0, which every element reaches."""
    stride = max(sum(tensor.numel() for tensor in scores.values()) // SAMPLE, 1)
    for tensor in scores.values():
        if tensor.numel() and not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(tensor)):
            raise ValueError("scores with NaN or infinity: a client must check its update before it sparsifies")
    sample = np.concatenate([tensor.reshape(-1)[::stride].cpu().numpy() for tensor in scores.values()])
    found = np.sort(sample)[::-1].copy()
    found[-1] = 0.0
    return found


def _reaching(changes: Tensors, scores: Tensors, threshold: float) -> dict[str, SparseTensor]:
    return {
        name: SparseTensor.from_mask(delta, (scores[name] >= threshold) & (delta != 0))
        for name, delta in changes.items()
    }


def _share_of_bits(bits: float) -> float:
    """About the share of elements whose positions and signs take so many bits an element of all."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        positions = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        low, high = (share, high) if positions + share < bits else (low, share)
    return (low + high) / 2


def _order_statistic(flat: Tensor, index: int) -> float:
    """The element that a sort of `flat` would put at `index`. numpy's selection is several times faster on a CPU."""
    if flat.device.type == "cpu":
        return float(np.partition(flat.numpy(), index)[index])
    return float(flat.kthvalue(index + 1).values)


def rescale(sparse: SparseTensor, delta: Tensor, how: Rescale, cap: float) -> SparseTensor:
    """Gives the kept elements the L1 norm of the whole delta: times min(||delta||_1 / ||kept||_1, cap).

    The authors' program does this and the paper does not say so; without it the average step shrinks to what was
    kept. It acts like a larger server learning rate, and at very low density it diverges without the cap.

    Args:
        sparse: what `prune` kept of `delta`.
        delta: the whole matrix.
        how: "l1", or "none" to leave the values alone.
        cap: largest factor, >= 1.
    """
    if how == "none" or sparse.count == 0:
        return sparse
    kept = sparse.values.abs().sum(dtype=torch.float64)
    factor = (delta.abs().sum(dtype=torch.float64) / kept).clamp(max=cap)
    return SparseTensor(sparse.shape, sparse.positions, (sparse.values * factor).float(), sparse.draw)

"""The uplink's sparsifier as a part that any method may use: which elements to keep, how many, and how to rescale.

FedSRD's choice (Yan et al., arXiv 2510.04601, section 4.1) is `importance` with an `adaptive` ratio; the others are the
paper's ablations, and what it plugs into FedAvg.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedsrd import rng
from fedsrd.core import sparsify
from fedsrd.core.factors import Delta, Draw, Factors, SparseTensor, dense_delta, difference
from fedsrd.methods.method import ClientStep, MethodOptions

Fraction = Annotated[float, Field(ge=0, lt=1)]
Uplink = Literal["dense", "importance", "magnitude", "random"]


class UplinkOptions(MethodOptions):
    """Options of the uplink.

    Attributes:
        uplink: "importance" keeps the elements that move the full weight most, "magnitude" the largest, "random" any;
            "dense" sends all.
        ratio: "adaptive" drops alpha + 0.1 ln(kurtosis of the scores) of each matrix, "fixed" drops alpha. A random
            uplink takes the adaptive ratio from the importance.
        alpha: base ratio of elements to drop (the paper: 0.85 to 0.9).
        upper: largest ratio of one matrix.
        rescale: "l1" gives kept elements the whole delta's L1 norm (the authors' program); "none" leaves them.
        rescale_cap: largest factor of the L1 rescale.
    """

    uplink: Uplink = "importance"
    ratio: Literal["adaptive", "fixed"] = "adaptive"
    alpha: Fraction = 0.85
    upper: Fraction = 0.99
    rescale: sparsify.Rescale = "l1"
    rescale_cap: Annotated[float, Field(ge=1)] = 10.0


def sparse_update(before: Factors, after: Factors, options: UplinkOptions, step: ClientStep) -> Delta:
    """The chosen elements of every factor's change. A matrix at a time: no copy of the whole adapter is made."""
    if options.uplink == "dense":
        return dense_delta(after, before)
    seed = rng.integer(step.seed, "uplink", step.round, step.client)
    kept = {}
    for slot, delta in difference(after, before):
        by_magnitude = options.uplink == "magnitude"
        scores = delta.abs() if by_magnitude else sparsify.importance(slot, delta, before, after)
        ratio = min(options.alpha, options.upper)
        if options.ratio == "adaptive":
            ratio = sparsify.adaptive_ratio(scores, options.alpha, options.upper)
        if options.uplink == "random" and ratio > 0:
            pruned = SparseTensor.from_draw(delta, slot, Draw(seed, 1.0 - ratio))
        else:
            pruned = sparsify.prune(delta, scores, ratio)
        kept[slot] = sparsify.rescale(pruned, delta, options.rescale, options.rescale_cap)
    return kept

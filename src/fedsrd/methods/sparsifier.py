"""The client's sparsifier as a part that any method may use: which elements to keep, how many, and how to rescale.

FedSRD's choice (Yan et al., arXiv 2510.04601, section 4.1) is `importance` with an `adaptive` ratio; the others are the
paper's ablations, and what it plugs into FedAvg.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from fedsrd import rng
from fedsrd.core import sparsify
from fedsrd.core.tensors import Delta, Draw, SparseTensor, Tensors, difference
from fedsrd.methods.method import ClientContext, MethodOptions

Fraction = Annotated[float, Field(ge=0, lt=1)]
Sparsifier = Literal["dense", "importance", "magnitude", "random"]


class SparsifierOptions(MethodOptions):
    """Options of what a client sends.

    Attributes:
        sparsifier: "importance" keeps the elements that move the full weight most, "magnitude" the largest, "random"
            any; "dense" sends all.
        ratio: "adaptive" drops alpha + 0.1 ln(kurtosis of the scores) of each matrix, "fixed" drops alpha. A random
            sparsifier takes the adaptive ratio from the importance.
        alpha: base ratio of elements to drop (the paper: 0.85 to 0.9).
        upper: largest ratio of one matrix.
        rescale: "l1" gives kept elements the whole delta's L1 norm (the authors' program); "none" leaves them.
        rescale_cap: largest factor of the L1 rescale.
    """

    sparsifier: Sparsifier = "importance"
    ratio: Literal["adaptive", "fixed"] = "adaptive"
    alpha: Fraction = 0.85
    upper: Fraction = 0.99
    rescale: sparsify.Rescale = "l1"
    rescale_cap: Annotated[float, Field(ge=1, le=1e6)] = 10.0

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "uplink" in given:
            raise ValueError(f"uplink = {given['uplink']!r} is now called sparsifier")
        return given


def sparse_update(before: Tensors, after: Tensors, options: SparsifierOptions, context: ClientContext) -> Delta:
    """The chosen elements of every tensor's change. A tensor at a time: no copy of all is made."""
    return sparse(difference(after, before), before, after, options, context)


def sparse(
    changes: Iterable[tuple[str, Tensor]],
    before: Tensors,
    after: Tensors,
    options: SparsifierOptions,
    context: ClientContext,
) -> Delta:
    """The chosen elements of each change; `before` and `after` weigh their importance (`core.sparsify.importance`)."""
    if options.sparsifier == "dense":
        return {name: SparseTensor.from_dense(delta) for name, delta in changes}
    seed = rng.integer(context.seed, "uplink", context.round, context.client)
    kept = {}
    for name, delta in changes:
        by_magnitude = options.sparsifier == "magnitude"
        scores = delta.abs() if by_magnitude else sparsify.importance(name, delta, before, after)
        ratio = min(options.alpha, options.upper)
        if options.ratio == "adaptive":
            ratio = sparsify.adaptive_ratio(scores, options.alpha, options.upper)
        if options.sparsifier == "random" and ratio > 0:
            pruned = SparseTensor.from_draw(delta, name, Draw(seed, 1.0 - ratio))
        else:
            pruned = sparsify.prune(delta, scores, ratio)
        kept[name] = sparsify.rescale(pruned, delta, options.rescale, options.rescale_cap)
    return kept

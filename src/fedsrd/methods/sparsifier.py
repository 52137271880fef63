"""The client's compressor as a part that any method may use: which elements to send, how many, how to rescale them, and
what becomes of the rest.

FedSRD's choice (Yan et al., arXiv 2510.04601, section 4.1) is `importance` with an `adaptive` ratio; the others are the
paper's ablations, what it plugs into FedAvg, and what error feedback makes possible (`core.feedback`).
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from fedsrd import rng
from fedsrd.core import feedback, lora, sparsify
from fedsrd.core.feedback import Feedback
from fedsrd.core.tensors import Delta, Draw, SparseTensor, Tensors, difference
from fedsrd.methods.method import ClientContext, MethodOptions, MethodState, RoundContext, Size

Fraction = Annotated[float, Field(ge=0, lt=1)]
Period = Annotated[int, Field(ge=1, le=1000)]
Sparsifier = Literal["dense", "importance", "magnitude", "random", "cyclic"]
COMMON = frozenset[Sparsifier](("dense", "cyclic"))
"""Those that take the same elements at all clients."""


class SparsifierOptions(MethodOptions):
    """Options of what a client sends.

    Attributes:
        sparsifier: "importance" keeps the elements that move the full weight most, "magnitude" the largest, "random"
            any; "cyclic" the same part at all clients, another one every round, each element once in `period` rounds;
            "dense" sends all.
        ratio: "adaptive" drops alpha + 0.1 ln(kurtosis of the scores) of each matrix, "fixed" drops alpha, "budget" so
            many of all matrices together that the payload has `bits`. A random sparsifier takes the adaptive ratio from
            the importance.
        alpha: base ratio of elements to drop (the paper: 0.85 to 0.9).
        upper: largest ratio of one matrix.
        bits: of a payload, a parameter of the adapter, where the ratio is "budget".
        rescale: "l1" gives kept elements the whole delta's L1 norm (the authors' program); "none" leaves them.
        rescale_cap: largest factor of the L1 rescale.
        period: of the cyclic sparsifier, in rounds.
        period_a: the same for LoRA's factor A; 0 for `period`.
        feedback: what becomes of what is not sent: "none" loses it, "ef14" keeps it for the next update, "ef21" sends
            differences to what the server knows already (`core.feedback`).
        decay: by which ef14's residual is multiplied every round.
    """

    sparsifier: Sparsifier = "importance"
    ratio: Literal["adaptive", "fixed", "budget"] = "adaptive"
    alpha: Fraction = 0.85
    upper: Fraction = 0.99
    bits: Annotated[float, Field(gt=0, le=64)] = 0.5
    rescale: sparsify.Rescale = "l1"
    rescale_cap: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    period: Period = 3
    period_a: Annotated[int, Field(ge=0, le=1000)] = 0
    feedback: Feedback = "none"
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "uplink" in given:
            raise ValueError(f"uplink = {given['uplink']!r} is now called sparsifier")
        return given

    @model_validator(mode="after")
    def _loses_or_keeps(self) -> Self:
        pruned = self.sparsifier in ("importance", "magnitude", "random")
        if self.feedback != "none" and pruned and self.rescale != "none":
            raise ValueError(
                f'feedback = "{self.feedback}" with rescale = "{self.rescale}": what is kept for later would be sent '
                'twice; expected rescale = "none"'
            )
        if self.ratio == "budget" and self.sparsifier not in ("importance", "magnitude"):
            raise ValueError(
                f'ratio = "budget" with sparsifier = "{self.sparsifier}": expected "importance" or "magnitude", which '
                "rank all elements"
            )
        return self


def sparse_update(
    before: Tensors, after: Tensors, options: SparsifierOptions, context: ClientContext
) -> tuple[Delta, MethodState]:
    """The chosen elements of every tensor's change, and what is kept. Without feedback no copy of all is made."""
    return sparse(difference(after, before), before, after, options, context)


def sparse(
    changes: Iterable[tuple[str, Tensor]],
    before: Tensors,
    after: Tensors,
    options: SparsifierOptions,
    context: ClientContext,
) -> tuple[Delta, MethodState]:
    """The chosen elements of each change, and what is kept of the rest; `before` and `after` weigh their importance
    (`core.sparsify.importance`).
    """
    how = options.feedback
    wanted: dict[str, Tensor] = {}

    def whole() -> Iterable[tuple[str, Tensor]]:
        for name, delta in changes:
            found = feedback.compensated(how, name, delta, context.memory, options.decay)
            if how != "none":
                wanted[name] = found
            yield name, found

    if options.ratio == "budget":
        elements = sum(tensor.numel() for tensor in before.values())
        sent = within(dict(whole()), before, after, options, context.size, options.bits * elements / 8)
    else:
        sent = {name: _chosen(name, delta, before, after, options, context) for name, delta in whole()}
    if how == "none":
        return sent, {}
    return sent, feedback.remembered(how, wanted, context.received(sent), context.memory)


def cyclic(round_number: int, period: int, seed: int) -> Draw:
    """The round's part of a division of all elements into `period` parts, the same for everybody."""
    part = round_number % period
    first, end = part / period, (part + 1) / period
    return Draw(rng.integer(seed, "cycle"), end - first, first)


def common(options: SparsifierOptions, name: str, context: RoundContext) -> Draw | None:
    """The elements of a tensor that all clients send in a round, for sparsifiers that are COMMON; None for all."""
    period = options.period_a if options.period_a and lora.split(name)[1] == "A" else options.period
    if options.sparsifier == "dense" or period == 1:
        return None
    return cyclic(context.round, period, context.seed)


def within(
    changes: Tensors, before: Tensors, after: Tensors, options: SparsifierOptions, size: Size, wanted: float
) -> Delta:
    """The elements of highest score of all matrices together, so many that their payload has `wanted` bytes.

    One threshold for all matrices is where the rate-distortion curves of all have the same slope: no other division of
    the bytes among them keeps more (reverse water-filling; Cover and Thomas, Elements of Information Theory, 10.3.3).

    Args:
        changes: what there is to send.
        before: as in `sparse`.
        after: as in `sparse`.
        options: the sparsifier's.
        size: of a payload.
        wanted: bytes; kept to within 2 % where the number of elements allows it, and exceeded by no more than that
            unless the elements of the very highest score take more.
    """
    scores = {name: _scores(name, delta, before, after, options) for name, delta in changes.items()}
    return sparsify.fitted(changes, scores, size, wanted)


def _scores(name: str, delta: Tensor, before: Tensors, after: Tensors, options: SparsifierOptions) -> Tensor:
    if options.sparsifier == "magnitude":
        return delta.abs()
    return sparsify.importance(name, delta, before, after)


def _chosen(
    name: str, delta: Tensor, before: Tensors, after: Tensors, options: SparsifierOptions, context: ClientContext
) -> SparseTensor:
    if options.sparsifier in COMMON:
        draw = common(options, name, context)
        return SparseTensor.from_dense(delta) if draw is None else SparseTensor.from_draw(delta, name, draw)
    scores = _scores(name, delta, before, after, options)
    ratio = min(options.alpha, options.upper)
    if options.ratio == "adaptive":
        ratio = sparsify.adaptive_ratio(scores, options.alpha, options.upper)
    if options.sparsifier == "random" and ratio > 0:
        seed = rng.integer(context.seed, "uplink", context.round, context.client)
        pruned = SparseTensor.from_draw(delta, name, Draw(seed, 1.0 - ratio))
    else:
        pruned = sparsify.prune(delta, scores, ratio)
    return sparsify.rescale(pruned, delta, options.rescale, options.rescale_cap)

"""How a direction is coded: the choices of the sender. A reader needs none of them, the payload says what it holds."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ValueType = Literal["float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"]
PositionCoding = Literal["auto", "bitmap", "gaps"]
Exponents = Literal["auto", "raw"]


class WireOptions(BaseModel):
    """How one direction's payloads are written; the keys of a recipe's [wire.uplink] and [wire.downlink].

    Attributes:
        values: the number type that travels. Floats round to the nearest; integers have a scale for each block and,
            unless there is a threshold, round at random, so that their expectation is the value itself.
        positions: "auto" sends the seed of positions that were drawn and else what is smallest; "bitmap" is the
            paper's format, one bit an element; "gaps" codes the distances between elements.
        exponents: for floats, "auto" entropy-codes them where that is smaller; "raw" leaves floats as they are. A dense
            float32 delta is a sixth smaller coded and takes ten times as long: "raw" is for fast links.
        block: for integers, the mean number of values under one scale.
        threshold: for integers, values smaller than this times their block's mean magnitude, and than 0.95 of its
            largest, become zero; the others get the next level and the scale of least squared error. That is closer
            than rounding at random and biased: for methods that keep what is lost (error feedback). None rounds at
            random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: ValueType = "float32"
    positions: PositionCoding = "auto"
    exponents: Exponents = "auto"
    block: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    threshold: Annotated[float, Field(gt=0.0, le=16.0)] | None = None

    @model_validator(mode="after")
    def _of_integers(self) -> Self:
        if self.threshold is not None and self.values in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"threshold {self.threshold:g} with values {self.values}: floats have no levels to round to; "
                "take an integer type (int8, int4, int3, int2 or ternary) or leave threshold out"
            )
        return self


class SumOptions(BaseModel):
    """How updates travel where the server adds them up as integers; the keys of a recipe's [wire.sum].

    All clients have one step a tensor, which the server tells with a round's task, and send whole multiples of it, from
    -levels to levels. What rounding and clipping take away is fed back where the method has error feedback.

    Attributes:
        levels: largest multiple; 1 is ternary, 7 takes four bits, 127 eight, before the room that a sum needs.
        range: what the largest level stands for, in mean magnitudes of the clients' updates; what is longer is clipped.
        threshold: values below this times their tensor's mean magnitude, and below 0.95 of its largest, become zero,
            and others are rounded to the nearest level from one on; then the step, not the range, follows the updates.
            For few levels and methods with feedback. None rounds at random, so that the expectation is the value.
        examples: with weighting = "examples", as how many a client counts at most; it then weighs its update itself by
            its number of examples over this one, and tells nobody the number. None: every client alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    levels: Annotated[int, Field(ge=1, le=32767)] = 4095
    range: Annotated[float, Field(ge=1.0, le=1e4)] = 16.0
    threshold: Annotated[float, Field(gt=0.0, le=16.0)] | None = None
    examples: Annotated[int, Field(ge=1, le=10**9)] | None = None

"""How a direction is coded: the choices of the sender. A reader needs none of them, the payload says what it holds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ValueType = Literal["float32", "bfloat16", "float16", "int8", "int4", "int3", "ternary"]
PositionCoding = Literal["auto", "bitmap", "gaps"]
Exponents = Literal["auto", "raw"]


class WireOptions(BaseModel):
    """How one direction's payloads are written; the keys of a recipe's [wire.uplink] and [wire.downlink].

    Attributes:
        values: the number type that travels. Floats round to the nearest; integers have a scale for each block.
        rounding: of integers. "random" scales a block by its largest value and rounds at random, so that the
            expectation is the value itself; "nearest" takes the scale of least squared error and the nearest level,
            which is closer and biased: for methods that keep what is lost (error feedback).
        positions: "auto" sends the seed of positions that were drawn and else what is smallest; "bitmap" is the
            paper's format, one bit an element; "gaps" codes the distances between elements.
        exponents: for floats, "auto" entropy-codes them where that is smaller; "raw" leaves floats as they are. A dense
            float32 delta is a sixth smaller coded and takes ten times as long: "raw" is for fast links.
        block: for integers, the mean number of values under one scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: ValueType = "float32"
    rounding: Literal["random", "nearest"] = "random"
    positions: PositionCoding = "auto"
    exponents: Exponents = "auto"
    block: Annotated[int, Field(ge=1, le=1 << 20)] = 128

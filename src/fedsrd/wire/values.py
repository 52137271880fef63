"""Codings of values: the numbers of a payload, in the order of their positions. As `positions`, one number a coding."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedsrd.errors import PayloadError

Values = np.ndarray  # (count,) float32


class Coding(NamedTuple):
    """One way to write values; `name` is what `fedsrd inspect` shows."""

    name: str
    encode: Callable[[Values], bytes]
    decode: Callable[[memoryview, int], tuple[Values, int]]


def encode_float32(values: Values) -> bytes:
    """IEEE 754 binary32, little-endian, four bytes a value."""
    return values.astype("<f4", copy=False).tobytes()


def decode_float32(view: memoryview, count: int) -> tuple[Values, int]:
    """The inverse of `encode_float32`, as a copy that can be written to.

    Raises:
        PayloadError: fewer than `count` values are left.
    """
    if len(view) < 4 * count:
        raise PayloadError(f"{count} float32 values need {4 * count} bytes, {len(view)} are left: truncated")
    return np.frombuffer(view[: 4 * count], dtype="<f4").astype(np.float32), 4 * count


FLOAT32 = 1
CODINGS: dict[int, Coding] = {FLOAT32: Coding("float32", encode_float32, decode_float32)}

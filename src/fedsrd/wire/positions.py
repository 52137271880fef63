"""Codings of positions: which elements of a matrix a payload carries.

A coding is a pair of functions over one matrix. `encode(positions, elements)` gives bytes; `decode(view, elements,
count)` gives the positions back and how many bytes it used, or raises `PayloadError`. New codings get a new number in
`CODINGS` and nothing else changes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedsrd.errors import PayloadError

Positions = np.ndarray  # (count,) int64, strictly increasing


class Coding(NamedTuple):
    """One way to write positions; `name` is what `fedsrd inspect` shows."""

    name: str
    encode: Callable[[Positions, int], bytes]
    decode: Callable[[memoryview, int, int], tuple[Positions, int]]


def encode_bitmap(positions: Positions, elements: int) -> bytes:
    """One bit an element, the least significant bit of each byte first; spare bits of the last byte are zero."""
    bits = np.zeros(elements, dtype=np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def decode_bitmap(view: memoryview, elements: int, count: int) -> tuple[Positions, int]:
    """The inverse of `encode_bitmap`.

    Raises:
        PayloadError: the bitmap is cut short, has not `count` ones, or has spare bits set.
    """
    size = (elements + 7) // 8
    if len(view) < size:
        raise PayloadError(f"bitmap of {elements} elements needs {size} bytes, {len(view)} are left: truncated")
    bits = np.unpackbits(np.frombuffer(view[:size], dtype=np.uint8), bitorder="little")
    if bits[elements:].any():
        raise PayloadError(f"bitmap of {elements} elements has spare bits set after the last one")
    positions = np.flatnonzero(bits)
    if len(positions) != count:
        raise PayloadError(f"bitmap has {len(positions)} ones where the header counts {count} values")
    return positions, size


BITMAP = 1
CODINGS: dict[int, Coding] = {BITMAP: Coding("bitmap", encode_bitmap, decode_bitmap)}

"""Small integers modulo 2^bits, packed in 64-bit words and added there: the currency of secure aggregation.

A word holds 64 // bits fields; its spare bits on top are zero. Fields lie in planes: integer i is field i // words of
word i % words, so that packing, adding and unpacking run over contiguous memory. On the wire words are little endian
and the last one counts whole. Addition is that of fields in a register: carries do not cross (H has each field's top
bit, a + b = ((a & ~H) + (b & ~H)) ^ ((a ^ b) & H)).
"""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

Words = NDArray[np.uint64]

BLOCK = 1 << 14
"""Words that are worked on at once: with their temporaries they stay in a core's cache."""
_NATIVE: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}


@dataclass(frozen=True)
class Layout:
    """How so many integers of so many bits lie in words.

    Attributes:
        bits: of one integer, 1 to 32.
        count: integers, at least one.
    """

    bits: Annotated[int, Field(ge=1, le=32)]
    count: Annotated[int, Field(ge=1, le=1 << 36)]

    @property
    def fields(self) -> int:
        """Integers in a word."""
        return 64 // self.bits

    @property
    def words(self) -> int:
        """64-bit words of the whole vector."""
        return -(-self.count // self.fields)

    @property
    def bytes(self) -> int:
        """Bytes on the wire."""
        return 8 * self.words

    @property
    def used(self) -> int:
        """The bits of a word that fields occupy."""
        return (1 << (self.bits * self.fields)) - 1

    @property
    def tops(self) -> int:
        """The top bit of every field."""
        return sum(1 << (self.bits * field + self.bits - 1) for field in range(self.fields))

    def zeros(self) -> Words:
        """Shape (words,), dtype uint64: every integer 0."""
        return np.zeros(self.words, np.uint64)

    def holds(self, words: NDArray[Any]) -> bool:
        """Whether these are words of this layout: shape, dtype, and zeros in the spare bits."""
        if words.dtype != np.uint64 or words.shape != (self.words,):
            return False
        if self.bits * self.fields == 64:
            return True
        spare = np.uint64(~self.used & (1 << 64) - 1)
        return not any((words[at : at + BLOCK] & spare).any() for at in range(0, self.words, BLOCK))


def bits_for(clients: int, levels: int) -> int:
    """Bits of a field in which a sum of `clients` integers from [-levels, levels] is exact.

    Raises:
        ValueError: less than one client or level, or more than 32 bits.

    >>> bits_for(4, 1), bits_for(7, 1), bits_for(8, 1), bits_for(64, 1)
    (4, 4, 5, 8)
    """
    if clients < 1 or levels < 1:
        raise ValueError(f"{clients} clients, {levels} levels: expected one or more of each")
    bits = (2 * clients * levels).bit_length()
    if bits > 32:
        raise ValueError(f"{clients} clients with {levels} levels need {bits} bits: expected at most 32")
    return bits


def pack(integers: NDArray[Any], layout: Layout) -> Words:
    """Integers modulo 2^bits as words.

    Args:
        integers: shape (count,), any integer dtype; negative ones count modulo 2^bits.
        layout: theirs.

    Raises:
        ValueError: another shape, or no integers.
    """
    if integers.shape != (layout.count,) or integers.dtype.kind not in "iu":
        raise ValueError(f"{integers.dtype} of shape {integers.shape}: expected {layout.count} integers")
    packed = layout.zeros()
    mask = np.uint64((1 << layout.bits) - 1)
    wide = np.empty(min(BLOCK, layout.words), np.uint64)
    for start, stop in _blocks(layout):
        for field in range(layout.fields):
            plane = integers[field * layout.words + start : min(field * layout.words + stop, layout.count)]
            part = wide[: len(plane)]
            np.copyto(part, plane, casting="unsafe")
            part &= mask
            part <<= np.uint64(field * layout.bits)
            packed[start : start + len(plane)] |= part
    return packed


def unpack(words: Words, layout: Layout, centred: bool = True) -> NDArray[Any]:
    """The integers of packed words, shape (count,).

    Args:
        words: shape (words,).
        layout: theirs.
        centred: read them in [-2^(bits-1), 2^(bits-1)), in the smallest signed dtype; else in [0, 2^bits), in the
            smallest unsigned one.

    Raises:
        ValueError: they are not of this layout.
    """
    if not layout.holds(words):
        raise ValueError(
            f"{words.dtype} of shape {words.shape}: expected {layout.words} words of {layout.bits}-bit fields"
        )
    size = next(size for size in (8, 16, 32) if layout.bits <= size)
    integers = np.empty(layout.count, f"{'i' if centred else 'u'}{size // 8}")
    # Up to the top of a signed integer and down again: the shift brings the sign along.
    down = integers.dtype.type(size - layout.bits)
    mask = np.uint64((1 << layout.bits) - 1)
    wide = np.empty(min(BLOCK, layout.words), np.uint64)
    for start, stop in _blocks(layout):
        for field in range(layout.fields):
            plane = integers[field * layout.words + start : min(field * layout.words + stop, layout.count)]
            part = wide[: len(plane)]
            np.right_shift(words[start : start + len(plane)], np.uint64(field * layout.bits), out=part)
            part &= mask
            np.copyto(plane, part, casting="unsafe")
            if centred:
                plane <<= down
                plane >>= down
    return integers


def add_(words: Words, others: Words, layout: Layout) -> None:
    """Adds others to words in place, field by field modulo 2^bits. Shape (words,) both, or any part of both alike."""
    adder = Adder(layout)
    for at in range(0, len(words), BLOCK):
        adder.add(words[at : at + BLOCK], others[at : at + BLOCK])


def subtract_(words: Words, others: Words, layout: Layout) -> None:
    """Subtracts others from words in place, field by field modulo 2^bits."""
    adder = Adder(layout)
    for at in range(0, len(words), BLOCK):
        adder.subtract(words[at : at + BLOCK], others[at : at + BLOCK])


class Adder:
    """Addition of blocks of packed words, with the buffers that it needs.

    Args:
        layout: of the words.
    """

    def __init__(self, layout: Layout):
        self._native = _NATIVE.get(layout.bits)
        self._tops = np.uint64(layout.tops)
        self._rest = np.uint64(layout.used & ~layout.tops)
        self._buffers = np.empty((2, BLOCK), np.uint64)

    def add(self, words: Words, others: Words) -> None:
        """In place; at most BLOCK words, contiguous. Spare bits of others count for nothing."""
        if self._native:
            np.add(words.view(self._native), others.view(self._native), out=words.view(self._native))
            return
        left, right = self._buffers[:, : len(words)]
        np.bitwise_and(words, self._rest, out=left)
        np.bitwise_and(others, self._rest, out=right)
        left += right
        np.bitwise_xor(words, others, out=words)
        words &= self._tops
        words ^= left

    def subtract(self, words: Words, others: Words) -> None:
        """In place, as `add`: a - b = ((a | H) - (b & ~H)) ^ ((a ^ ~b) & H)."""
        if self._native:
            np.subtract(words.view(self._native), others.view(self._native), out=words.view(self._native))
            return
        left, right = self._buffers[:, : len(words)]
        np.bitwise_or(words, self._tops, out=left)
        np.bitwise_and(others, self._rest, out=right)
        left -= right
        np.bitwise_xor(words, others, out=words)
        np.invert(words, out=words)
        words &= self._tops
        words ^= left


def to_bytes(words: Words) -> bytes:
    """Words for the wire: little endian, 8 bytes each."""
    return words.astype("<u8", copy=False).tobytes()


def from_bytes(raw: bytes | bytearray | memoryview, layout: Layout) -> Words:
    """Words from the wire, a copy that may be changed.

    Raises:
        ValueError: another length than the layout's, or spare bits that are not zero.
    """
    if len(raw) != layout.bytes:
        raise ValueError(f"{len(raw)} bytes: expected {layout.bytes}")
    words = np.frombuffer(raw, "<u8").astype(np.uint64)
    if not layout.holds(words):
        raise ValueError("bits beyond the fields: expected zeros")
    return words


def _blocks(layout: Layout) -> list[tuple[int, int]]:
    return [(at, min(at + BLOCK, layout.words)) for at in range(0, layout.words, BLOCK)]

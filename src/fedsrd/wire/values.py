"""Number types of values: the numbers of a payload, in the order of their positions.

A type quantises the values of one matrix, packs those of all matrices into one section, and reads them back. New types
get a new number in `TYPES` and nothing else changes. Floats travel raw or with their exponents entropy-coded, whichever
is smaller; integers are always entropy-coded and have one scale for each block of the matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedsrd.errors import PayloadError
from fedsrd.wire.reader import Reader
from fedsrd.wire.symbols import coded_size, decode_histogram, encode_histogram, histogram

Array = np.ndarray[Any, Any]
Values = Array  # (count,) float32


@dataclass(frozen=True, slots=True)
class Place:
    """Where one matrix's values belong: its number of elements, and their positions (None: all elements)."""

    elements: int
    positions: Array | None
    count: int


@dataclass(frozen=True, slots=True)
class Quantised:
    """The values of one matrix as they travel.

    Attributes:
        numbers: (count,) words or levels.
        scales: (blocks,) bfloat16 words; empty for floats.
    """

    numbers: Array
    scales: Array


class ValueCodec(Protocol):
    """One number type."""

    @property
    def name(self) -> str:
        """As a recipe says it."""

    @property
    def scaled(self) -> bool:
        """Whether values share scales by block."""

    def quantise(
        self, values: Values, place: Place, block: int, uniform: Array | None, threshold: float | None = None
    ) -> Quantised:
        """The values of one matrix, rounded to the type."""

    def kept(self, quantised: Quantised) -> Array:
        """(count,) bool: False where a value became zero."""

    def dequantise(self, quantised: Quantised, place: Place, block: int) -> Values:
        """The values as a reader will have them: (count,) float32, new."""

    def pack(self, parts: Sequence[Quantised], *, raw: bool = False) -> bytes:
        """The values of all matrices as one section; `raw` leaves floats as they are."""

    def unpack(self, reader: Reader, places: Sequence[Place], block: int) -> list[Values]:
        """The inverse of `pack` and `quantise`. Raises PayloadError."""


@dataclass(frozen=True, slots=True)
class Float:
    """IEEE 754 binary32 or binary16, or bfloat16 (the upper half of a binary32). Rounded to nearest, ties to even."""

    name: str
    bits: int
    scaled: bool = False

    def quantise(
        self, values: Values, place: Place, block: int, uniform: Array | None, threshold: float | None = None
    ) -> Quantised:
        """Words of the type, whatever the last three arguments.

        Raises:
            ValueError: a value is beyond the type's largest number.
        """
        words = self.words(values)
        if not _finite(self.floats(words)):
            raise ValueError(f"a value of {np.abs(values).max():.3g} does not fit {self.name}")
        return Quantised(words, np.empty(0, dtype=np.uint16))

    def kept(self, quantised: Quantised) -> Array:
        """Both zeros count as zero."""
        kept: Array = (quantised.numbers << quantised.numbers.dtype.type(1)) != 0
        return kept

    def dequantise(self, quantised: Quantised, place: Place, block: int) -> Values:
        """Exactly what the words say."""
        return self.floats(quantised.numbers).astype(np.float32)

    def pack(self, parts: Sequence[Quantised], *, raw: bool = False) -> bytes:
        """As `pack_words`."""
        return self.pack_words([part.numbers for part in parts], raw=raw)

    def unpack(self, reader: Reader, places: Sequence[Place], block: int) -> list[Values]:
        """The values of each place."""
        counts = [place.count for place in places]
        floats = self.floats(self.unpack_words(reader, sum(counts), "values"))
        return np.split(floats, np.cumsum(counts)[:-1]) if counts else []

    def words(self, values: Values) -> Array:
        """Float32 to words: (count,) uint32 or uint16."""
        if self.name == "float32":
            return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        if self.name == "float16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16).view(np.uint16)
        wide = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((wide + (np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(
            np.uint16
        )

    def floats(self, words: Array) -> Values:
        """Words to float32, exactly."""
        if self.name == "float32":
            return words.view(np.float32)
        if self.name == "float16":
            with np.errstate(invalid="ignore"):  # a signalling NaN, which the caller refuses
                return words.view(np.float16).astype(np.float32)
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def pack_words(self, parts: Sequence[Array], *, raw: bool = False) -> bytes:
        """uint8 0 and the raw words; or uint8 1, a histogram-coded section of the first byte of every word rotated left
        by one bit (its exponent, for the most part), and the remaining bytes of the rotated words as they are. What is
        smaller, unless `raw`.
        """
        size = self.bits // 8
        count = sum(len(words) for words in parts)
        tops = [] if raw else [self._top(words) for words in parts]
        counts = histogram(tops)
        if raw or coded_size(counts) >= count:
            return b"\0" + b"".join(words.astype(f"<u{size}", copy=False).tobytes() for words in parts)
        rest = []
        for words in parts:
            rotated = self._rotated(words).astype(f"<u{size}", copy=False)
            rest.append(rotated.view(np.uint8).reshape(-1, size)[:, : size - 1].tobytes())
        return b"".join([b"\1", encode_histogram(tops, counts), *rest])

    def unpack_words(self, reader: Reader, count: int, what: str) -> Array:
        """The inverse of `pack_words`, new and writable. Raises PayloadError."""
        size = self.bits // 8
        began = reader.at
        coded = reader.number("u1", what)
        if coded > 1:
            raise PayloadError(f"{what}: {coded} says how they travel; this reader knows 0 (raw) and 1 (coded)")
        if coded == 0:
            words: Array = reader.array(f"<u{size}", count, what).astype(f"u{size}")
            reader.note(what, reader.at - began, 8.0 * size * count)
            return words
        # Exponents may take no bytes at all, mantissas never: they say first whether so many words can be there.
        reader.need((size - 1) * count, what)
        top = decode_histogram(reader, count, f"{what} (exponents)")
        began = reader.at
        rotated = np.empty((count, size), dtype=np.uint8)
        rotated[:, : size - 1] = reader.array("u1", (size - 1) * count, what).reshape(count, size - 1)
        rotated[:, size - 1] = top
        reader.note(f"{what} (mantissas)", reader.at - began, 8.0 * (size - 1) * count)
        words = rotated.reshape(-1).view(f"<u{size}").astype(f"u{size}", copy=False)
        sign = words << words.dtype.type(self.bits - 1)
        words >>= words.dtype.type(1)
        words |= sign
        return words

    def _rotated(self, words: Array) -> Array:
        rotated: Array = (words << words.dtype.type(1)) | (words >> words.dtype.type(self.bits - 1))
        return rotated

    def _top(self, words: Array) -> Array:
        # The rotated word's first byte: bits 7 to 14 of sixteen, 23 to 30 of thirty-two.
        top: Array = (words >> words.dtype.type(self.bits - 9)).astype(np.uint8)
        return top


@dataclass(frozen=True, slots=True)
class Integer:
    """Whole numbers -levels to levels times a bfloat16 scale, one for every `block` elements of the matrix.

    Without a threshold, the scale is the least that takes the block's largest value, and rounding is at random, up with
    the probability of the fraction, so that the expectation is the value (Alistarh et al., QSGD, arXiv 1610.02132).

    With one, what is smaller than the threshold times the block's mean magnitude becomes zero, but nothing within a
    twentieth of the block's largest; levels follow in steps of 3/2 of where zero ends, and the scale is that of least
    squared error under these levels. A zero bin that reaches further than half a step (a dead zone) costs fewer bits at
    equal error. For ternary values the scale is the mean magnitude of what is kept (Li et al., Ternary Weight Networks,
    arXiv 1605.04711; Sattler et al., STC, arXiv 1903.02891).
    """

    name: str
    levels: int
    scaled: bool = True

    def quantise(
        self, values: Values, place: Place, block: int, uniform: Array | None, threshold: float | None = None
    ) -> Quantised:
        """Levels as int8 and scales.

        Args:
            values: (count,) float32, finite.
            place: where they belong.
            block: elements of the matrix under one scale.
            uniform: (count,) in [0, 1) to round at random; None rounds to the nearest.
            threshold: half the zero bin's width, in mean magnitudes of the block; then `uniform` plays no part.

        Raises:
            ValueError: a value is not finite, or a scale times `levels` is beyond float32's largest number.
        """
        if threshold is not None:
            return self._above(values, place, block, threshold)
        blocks = _blocks(place, block)
        largest = np.zeros(-(-place.elements // block), dtype=np.float32)
        if len(values):
            starts = np.flatnonzero(np.diff(blocks, prepend=-1))
            largest[blocks[starts]] = np.maximum.reduceat(np.abs(values), starts)
        words = _round_up(largest / np.float32(self.levels))
        scales = BFLOAT16.floats(words)
        if not _finite(scales):
            raise self._too_large(largest.max())
        scale = scales[blocks]
        exact = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
        shift = np.float32(0.5) if uniform is None else uniform
        numbers = np.clip(np.floor(exact + shift), -self.levels, self.levels).astype(np.int8)
        return Quantised(numbers, words)

    def _above(self, values: Values, place: Place, block: int, threshold: float) -> Quantised:
        """Levels and scales with a dead zone, a few thousand values at a time, so that all steps stay in the cache."""
        words = np.zeros(-(-place.elements // block), dtype=np.uint16)
        numbers = np.empty(len(values), dtype=np.int8)
        ends = _ends(place, block)
        used = np.flatnonzero(np.diff(ends))
        bounds = ends[np.append(used, len(words))]
        first = 0
        while first < len(used):
            last = max(int(np.searchsorted(bounds, bounds[first] + _AT_ONCE, side="right")) - 1, first + 1)
            part = slice(int(bounds[first]), int(bounds[last]))
            words[used[first:last]] = self._round(
                values[part], bounds[first : last + 1] - bounds[first], threshold, numbers[part]
            )
            first = last
        with np.errstate(over="ignore", invalid="ignore"):
            longest = BFLOAT16.floats(words) * np.float32(self.levels)
        if not _finite(longest):  # a reader refuses it, whatever the levels
            raise self._too_large(np.abs(values).max())
        return Quantised(numbers, words)

    def _round(self, values: Values, bounds: Array, threshold: float, numbers: Array) -> Array:
        """Writes the levels of whole blocks and returns their scales as bfloat16 words.

        Args:
            values: (count,) float32.
            bounds: (blocks + 1,) where each block begins and the last ends; no block is empty.
            threshold: half the zero bin's width, in mean magnitudes.
            numbers: (count,) int8, to be written.

        Sums are float64, which float32 values cannot overflow.
        """
        starts, counts = bounds[:-1], np.diff(bounds)
        sizes = np.abs(values).astype(np.float64)
        total = np.add.reduceat(sizes, starts)
        if not _finite(total):
            raise self._too_large(sizes.max())
        # Of values that are all about equally large, as AdamW's first steps are, some are always sent. And at least so
        # much that its inverse is finite; float32's least number is far above.
        zero = np.minimum(threshold * (total / counts), _LONGEST * np.maximum.reduceat(sizes, starts))
        zero = np.maximum(zero, _TINY)
        level = np.repeat(1.0 / (1.5 * zero), counts)
        level *= sizes
        level += 1.0 / 3.0
        np.minimum(level, self.levels, out=level)
        np.floor(level, out=level)
        # The edge itself belongs to level one, also where the quotient was rounded.
        outside = sizes >= np.repeat(zero, counts)
        np.maximum(level, 1.0, out=level)
        level *= outside
        weight = np.add.reduceat(np.square(level), starts)
        sizes *= level
        scale = np.divide(np.add.reduceat(sizes, starts), weight, out=np.zeros_like(weight), where=weight > 0)
        words = BFLOAT16.words(scale.astype(np.float32))
        if ((words == 0) & (weight > 0)).any():  # a scale below bfloat16's least number: nothing is left of the block
            level *= np.repeat(words > 0, counts)
        numbers[:] = np.copysign(level, values)
        return words

    def _too_large(self, value: float) -> ValueError:
        return ValueError(f"a value of {value:.3g} does not fit {self.name}: its scale is no bfloat16")

    def kept(self, quantised: Quantised) -> Array:
        """Level zero says nothing."""
        kept: Array = quantised.numbers != 0
        return kept

    def dequantise(self, quantised: Quantised, place: Place, block: int) -> Values:
        """Level times scale, one exact float32 product a value."""
        scales = BFLOAT16.floats(quantised.scales)
        product: Values = quantised.numbers.astype(np.float32) * scales[_blocks(place, block)]
        return product

    def pack(self, parts: Sequence[Quantised], *, raw: bool = False) -> bytes:
        """All scales as bfloat16 (as `Float.pack_words`), then all levels plus `levels`, histogram-coded."""
        levels = [(part.numbers + np.int16(self.levels)).astype(np.uint8) for part in parts]
        return BFLOAT16.pack_words([part.scales for part in parts]) + encode_histogram(levels)

    def unpack(self, reader: Reader, places: Sequence[Place], block: int) -> list[Values]:
        """Level times scale, one exact float32 product a value."""
        blocks = [-(-place.elements // block) for place in places]
        words = BFLOAT16.unpack_words(reader, sum(blocks), "scales")
        scales = BFLOAT16.floats(words)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = scales * np.float32(self.levels)
        if not _finite(largest) or np.signbit(scales).any():
            raise PayloadError("scales: expected finite, non-negative numbers")
        symbols = decode_histogram(reader, sum(place.count for place in places), "values")
        if len(symbols) and symbols.max() > 2 * self.levels:
            raise PayloadError(f"values: level {symbols.max()} of {2 * self.levels + 1}")
        found, first, start = [], 0, 0
        for place, number in zip(places, blocks, strict=True):
            levels = symbols[start : start + place.count].astype(np.int16) - np.int16(self.levels)
            own = Quantised(levels, words[first : first + number])
            found.append(self.dequantise(own, place, block))
            first, start = first + number, start + place.count
        return found


def _blocks(place: Place, block: int) -> Array:
    """The block of every value."""
    positions = np.arange(place.elements) if place.positions is None else place.positions
    blocks: Array = positions // block
    return blocks


def _ends(place: Place, block: int) -> Array:
    """Where the values of each block begin, and where those of the last end: (blocks + 1,)."""
    blocks = -(-place.elements // block)
    edges = np.minimum(np.arange(blocks + 1) * block, place.elements)
    return edges if place.positions is None else np.searchsorted(place.positions, edges)


def _round_up(scales: Values) -> Array:
    """The least bfloat16 at or above each non-negative float32, as words."""
    wide = np.ascontiguousarray(scales, dtype=np.float32).view(np.uint32)
    return ((wide + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)


def _finite(values: Values) -> bool:
    return bool(np.isfinite(values).all())


_AT_ONCE = 1 << 14
"""Values that are rounded at once, unless a block has more."""
_TINY = 1e-200
_LONGEST = 0.95
BFLOAT16 = Float("bfloat16", 16)
FLOAT32 = 1
TYPES: dict[int, ValueCodec] = {
    FLOAT32: Float("float32", 32),
    2: BFLOAT16,
    3: Float("float16", 16),
    4: Integer("int8", 127),
    5: Integer("int4", 7),
    6: Integer("ternary", 1),
    7: Integer("int3", 3),
    8: Integer("int2", 2),
}

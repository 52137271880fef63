"""Entropy coding: integers to bytes by a range coder, with models that both ends compute from integers alone.

The coder is the range coder of the package `constriction` (Bamler, "Understanding entropy coding with asymmetric
numeral systems (ANS): a statistician's perspective", arXiv 2201.01741, and https://bamler-lab.github.io/constriction):
64-bit state, 32-bit words, 24-bit probabilities. A model is a table of positive integers with sum 2^24. The package
would round probabilities on its own; tables are handed to it in the one form that it takes over unchanged, so that the
bytes are a matter of our specification (docs/wire-format.md), which the tests read with a decoder of their own.
"""

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np

from fedsrd.errors import PayloadError
from fedsrd.wire.reader import Reader

Array = np.ndarray[Any, Any]
Symbols = Array  # (count,) unsigned 8-bit
Table = Array  # (symbols,) int64, each >= 1, sum 2**24

TOTAL = 1 << 24
GAP_SYMBOLS = 256
"""A gap is a symbol of 0 to 254; symbol 255 stands for 255 elements without a one, and the gap goes on."""

_CHUNK = 1 << 20  # symbols at a time: the coder wants them as int32, four times what they take


def frequencies(weights: Array) -> Table:
    """The table of a histogram: f_k = 1 + floor(w_k (2^24 - n) / sum w); the first largest takes what is left.

    Args:
        weights: (n,) non-negative integers below 2^39, not all zero, 2 <= n <= 256.

    >>> frequencies(np.array([3, 1])).tolist()
    [12582912, 4194304]
    """
    weights = weights.astype(np.int64)
    table: Table = 1 + weights * (TOTAL - len(weights)) // int(weights.sum())
    table[int(weights.argmax())] += TOTAL - int(table.sum())
    return table


def gap_frequencies(ones: int, elements: int) -> Table:
    """The table of gaps between `ones` elements thrown into `elements` at random: geometric, with an escape.

    With q = (elements - ones) / elements and powers q^j made by repeated multiplication, symbol j starts at
    floor((1 - q^j) (2^24 - 256)) + j. Doubles, rounded to nearest: every platform gets the same integers.

    Args:
        ones: 0 <= ones <= elements.
        elements: 1 <= elements < 2^53.
    """
    powers = np.full(GAP_SYMBOLS, (elements - ones) / elements)
    powers[0] = 1.0
    starts = np.floor((1.0 - np.multiply.accumulate(powers)) * float(TOTAL - GAP_SYMBOLS)).astype(np.int64)
    return np.diff(starts + np.arange(GAP_SYMBOLS), append=TOTAL)


def coder_model(table: Table) -> Any:
    """The table as constriction's model. It adds one to every weight, and weights with this sum it does not scale."""
    return constriction.stream.model.Categorical((table - 1).astype(np.float64), perfect=False)


class Encoder:
    """Writes symbols under changing models into one stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def write(self, symbols: Symbols, table: Table) -> None:
        """Appends symbols that share one model."""
        model = coder_model(table)
        for start in range(0, len(symbols), _CHUNK):
            self._coder.encode(symbols[start : start + _CHUNK].astype(np.int32), model)

    def bytes(self) -> bytes:
        """The stream: a uint32 number of words, then the words."""
        words = self._coder.get_compressed()
        stream: bytes = np.array([len(words)], dtype="<u4").tobytes() + words.astype("<u4", copy=False).tobytes()
        return stream


class Decoder:
    """Reads a stream of `Encoder`. Words after the last one count as zero: nothing wrong in it can hang or overrun.

    Who has read all symbols says so (`end`), for a stream must not hold what no symbol needs.
    """

    def __init__(self, reader: Reader, what: str) -> None:
        words = reader.array("<u4", reader.number("<u4", what), what)
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))
        self._untouched = len(words) > 0
        self._what = what

    def read(self, count: int, table: Table) -> Symbols:
        """The next `count` symbols.

        Raises:
            PayloadError: the stream holds none such.
        """
        model = coder_model(table)
        symbols = np.empty(count, dtype=np.uint8)
        self._untouched = self._untouched and not count
        for start in range(0, count, _CHUNK):
            part = symbols[start : start + _CHUNK]
            try:
                part[:] = self._coder.decode(model, len(part))
            except Exception as error:  # whatever the package says of a stream that no encoder wrote
                raise PayloadError(f"{self._what}: not a stream of its model ({error})") from None
        return symbols

    def end(self) -> None:
        """Raises PayloadError where the stream goes on after its last symbol, or holds words for none."""
        if self._untouched or not self._coder.maybe_exhausted():
            raise PayloadError(f"{self._what}: the stream goes on after its last symbol")


def entropy(counts: Array) -> float:
    """Bits that symbols with these counts cost at least when each is drawn on its own: sum of n_k log2(n / n_k)."""
    found = counts[counts > 0].astype(np.float64)
    return float((found * np.log2(found.sum() / found)).sum()) if len(found) else 0.0


def coded_size(counts: Array) -> float:
    """About the bytes that `encode_histogram` makes of symbols with these counts."""
    return 5 + 3 * int(np.count_nonzero(counts)) + entropy(counts) / 8


def histogram(parts: Sequence[Symbols]) -> Array:
    """How often each of 256 symbols occurs in all parts: (256,) int64."""
    return sum((np.bincount(part, minlength=256) for part in parts), np.zeros(256, dtype=np.int64))


def encode_histogram(parts: Sequence[Symbols], counts: Array | None = None) -> bytes:
    """Symbols under a model of their own, which travels in front; nothing at all for no symbols.

    uint8 the number n of different symbols less 1, the symbols in order (uint8 each), their weights (uint16 each), then
    the stream of their numbers 0 to n - 1 (none where n is 1). `counts` is `histogram(parts)`, for who has it.
    """
    counts = histogram(parts) if counts is None else counts
    used = np.flatnonzero(counts)
    if not len(used):
        return b""
    # Sixteen bits, the largest at the top; what occurs at all must not vanish.
    weights = np.maximum(counts[used] * 65535 // int(counts.max()), 1)
    head: bytes = bytes([len(used) - 1]) + used.astype(np.uint8).tobytes() + weights.astype("<u2").tobytes()
    if len(used) == 1:
        return head
    encoder, table = Encoder(), frequencies(weights)
    number = np.zeros(256, dtype=np.uint8)
    number[used] = np.arange(len(used))
    for part in parts:
        encoder.write(number[part], table)
    return head + encoder.bytes()


def decode_histogram(reader: Reader, count: int, what: str) -> Symbols:
    """The inverse of `encode_histogram`: (count,) uint8.

    Raises:
        PayloadError: it is cut short, its symbols are not in order, or one has no weight.
    """
    if not count:
        return np.empty(0, dtype=np.uint8)
    began = reader.at
    number = reader.number("u1", what) + 1
    known = reader.array("u1", number, what)
    weights = reader.array("<u2", number, what)
    if not weights.all() or (np.diff(known.astype(np.int16)) <= 0).any():
        raise PayloadError(f"{what}: expected {number} different symbols in order, each with a weight above 0")
    if number == 1:
        symbols = np.full(count, known[0], dtype=np.uint8)
    else:
        decoder = Decoder(reader, what)
        symbols = known[decoder.read(count, frequencies(weights))]
        decoder.end()
    if reader.trace is not None:
        reader.note(what, reader.at - began, entropy(np.bincount(symbols)))
    return symbols

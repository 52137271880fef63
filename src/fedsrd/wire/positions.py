"""Codecs of positions: which elements of which matrices a payload carries.

A codec writes the positions of all listed matrices of a payload at once and reads them back. New codecs get a new
number in `CODECS` and nothing else changes.

Importance pruning does not spread evenly: whether an element survives depends on the norm of the vector that it
multiplies, which is the rank component's. So "gaps" sorts the rank components of all matrices into classes of similar
density, and codes each class as one long row of coin tosses of its own bias. On real deltas this takes 7 to 27 % off
the entropy of equal coins, classes counted in; classes of features as well would cost what they save (docs/bytes.md has
the measurement).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsrd.errors import PayloadError
from fedsrd.wire.reader import Reader
from fedsrd.wire.symbols import (
    GAP_SYMBOLS,
    Decoder,
    Encoder,
    Symbols,
    decode_histogram,
    encode_histogram,
    entropy,
    gap_frequencies,
)

Array = np.ndarray[Any, Any]
Positions = Array  # (count,) int64, row-major, strictly increasing

CLASSES = 32
_ESCAPE = GAP_SYMBOLS - 1


class Matrix(NamedTuple):
    """What both ends know of a listed tensor, as a matrix; `by_row` where its rows are the components, such as LoRA A's
    rank components, and not its columns.
    """

    name: str
    rows: int
    columns: int
    by_row: bool

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def components(self) -> int:
        return self.rows if self.by_row else self.columns

    @property
    def features(self) -> int:
        return self.columns if self.by_row else self.rows


class PositionCodec(NamedTuple):
    """One way to write positions; `name` is what `fedsrd inspect` shows."""

    name: str
    encode: Callable[[Sequence[Matrix], Sequence[Positions]], bytes]
    decode: Callable[[Reader, Sequence[Matrix]], list[Positions]]


def encode_bitmap(matrices: Sequence[Matrix], positions: Sequence[Positions]) -> bytes:
    """One bit an element, each matrix in bytes of its own, the least significant bit first; spare bits are zero."""
    parts = []
    for matrix, found in zip(matrices, positions, strict=True):
        bits = np.zeros(matrix.elements, dtype=np.uint8)
        bits[found] = 1
        parts.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(parts)


def decode_bitmap(reader: Reader, matrices: Sequence[Matrix]) -> list[Positions]:
    """The inverse of `encode_bitmap`.

    Raises:
        PayloadError: a bitmap is cut short or has spare bits set.
    """
    found = []
    for matrix in matrices:
        began = reader.at
        view = reader.take((matrix.elements + 7) // 8, f"bitmap of {matrix.name}")
        bits = np.unpackbits(np.frombuffer(view, dtype=np.uint8), bitorder="little")
        if bits[matrix.elements :].any():
            raise PayloadError(f"bitmap of {matrix.name}: spare bits are set after its {matrix.elements} elements")
        found.append(np.flatnonzero(bits))
        reader.note("positions", reader.at - began, bernoulli_bits(len(found[-1]), matrix.elements))
    return found


def encode_gaps(matrices: Sequence[Matrix], positions: Sequence[Positions]) -> bytes:
    """Gaps between elements, class by class.

    The class of every rank component of every matrix (a histogram-coded symbol each); for every class that occurs, in
    order, its number of elements that travel and its number of symbols (uint64 each); one stream of all gaps.
    """
    labels = []
    gathered: list[list[Array]] = [[] for _ in range(CLASSES)]
    lengths = [0] * CLASSES
    for matrix, found in zip(matrices, positions, strict=True):
        component = found // matrix.columns if matrix.by_row else found % matrix.columns
        label = _classes(np.bincount(component, minlength=matrix.components), matrix.features)
        labels.append(label)
        own, size = _within_class(matrix, label)
        if matrix.by_row:
            place = found - (component - own[component]) * matrix.columns
        else:
            place = (found // matrix.columns) * size[label[component]] + own[component]
        classes = label[component]
        for c in np.flatnonzero(size):
            gathered[c].append(place[classes == c] + lengths[c])
            lengths[c] += int(size[c]) * matrix.features
    head, encoder = [], Encoder()
    for parts, length in zip(gathered, lengths, strict=True):
        if not length:
            continue
        gaps = np.diff(np.concatenate(parts), prepend=-1) - 1
        parts.clear()
        symbols = _symbols(gaps)
        head.append((len(gaps), len(symbols)))
        encoder.write(symbols, gap_frequencies(len(gaps), length))
    return encode_histogram(labels) + np.array(head, dtype="<u8").tobytes() + encoder.bytes()


def decode_gaps(reader: Reader, matrices: Sequence[Matrix]) -> list[Positions]:
    """The inverse of `encode_gaps`.

    Raises:
        PayloadError: it is cut short, or counts or gaps lead past the known elements.
    """
    components = sum(matrix.components for matrix in matrices)
    every = decode_histogram(reader, components, "position classes")
    if every.max() >= CLASSES:
        raise PayloadError(f"position class {every.max()}: there are {CLASSES}")
    labels = np.split(every, np.cumsum([matrix.components for matrix in matrices])[:-1])
    layout = [_within_class(matrix, label) for matrix, label in zip(matrices, labels, strict=True)]
    sizes = [size.astype(np.int64) * matrix.features for (_, size), matrix in zip(layout, matrices, strict=True)]
    ends = np.cumsum(sizes, axis=0)
    used = np.flatnonzero(ends[-1])
    began = reader.at
    counts = reader.array("<u8", 2 * len(used), "position counts").reshape(-1, 2)
    for c, (ones, symbols) in zip(used, counts.tolist(), strict=True):
        elements = int(ends[-1][c])
        if ones > elements or not ones <= symbols <= ones + elements // _ESCAPE:
            raise PayloadError(f"position class {c}: {ones} of {elements} elements in {symbols} symbols")
    decoder = Decoder(reader, "positions")
    bits = 0.0
    parts: list[list[Array]] = [[] for _ in matrices]
    for c, (ones, symbols) in zip(used, counts.tolist(), strict=True):
        elements = int(ends[-1][c])
        places = _places(decoder.read(symbols, gap_frequencies(ones, elements)), ones, elements)
        bits += bernoulli_bits(ones, elements)
        cuts = np.searchsorted(places, ends[:, c])
        start = 0
        for i, cut in enumerate(cuts.tolist()):
            if cut > start:
                before = int(ends[i - 1, c]) if i else 0
                parts[i].append(_positions(matrices[i], labels[i] == c, places[start:cut] - before))
            start = cut
    decoder.end()
    reader.note("positions", reader.at - began, bits)
    return [_merged(part) for part in parts]


def bernoulli_bits(ones: int, elements: int) -> float:
    """Bits that say which `ones` of `elements` coins of that bias fell: elements times the binary entropy.

    >>> bernoulli_bits(1, 2)
    2.0
    """
    return entropy(np.array([ones, elements - ones]))


def _classes(counts: Array, features: int) -> Symbols:
    """Class of every rank component: half octaves of density, the last for none at all."""
    density = counts / max(features, 1)
    label = np.rint(-2.0 * np.log2(np.maximum(density, 2.0**-20))).astype(np.int64)
    return np.where(counts > 0, np.minimum(label, CLASSES - 2), CLASSES - 1).astype(np.uint8)


def _within_class(matrix: Matrix, label: Symbols) -> tuple[Array, Array]:
    """Each component's number among those of its class in this matrix, and the size of each class there."""
    own = np.zeros(matrix.components, dtype=np.int64)
    size = np.bincount(label, minlength=CLASSES)
    for c in np.flatnonzero(size):
        own[label == c] = np.arange(size[c])
    return own, size


def _symbols(gaps: Array) -> Symbols:
    """Gaps as symbols: 255 for every 255 elements skipped, then the rest."""
    escapes = gaps // _ESCAPE
    if not escapes.any():
        return gaps.astype(np.uint8)
    ends = np.cumsum(escapes + 1)
    symbols = np.full(int(ends[-1]), _ESCAPE, dtype=np.uint8)
    symbols[ends - 1] = gaps % _ESCAPE
    return symbols


def _places(symbols: Symbols, ones: int, elements: int) -> Array:
    """The inverse of `_symbols` and of the differences: where the elements lie within their class."""
    ends = symbols != _ESCAPE
    after = np.cumsum(symbols + ends.astype(np.int16), dtype=np.int64)
    if len(after) and after[-1] > elements:
        raise PayloadError(f"positions: a gap leads to element {int(after[-1]) - 1} of {elements}")
    # Half the memory, and division is faster, where they fit.
    places: Array = after[ends].astype(np.int32 if elements < 1 << 31 else np.int64) - 1
    if len(places) != ones:
        raise PayloadError(f"positions: {len(places)} elements where {ones} were counted")
    return places


def _positions(matrix: Matrix, of_class: Array, places: Array) -> Array:
    """Places within one class of one matrix as positions in the matrix."""
    components = np.flatnonzero(of_class).astype(places.dtype)
    if matrix.by_row:
        own = places // matrix.columns
        found: Array = places + (components[own] - own) * places.dtype.type(matrix.columns)
    else:
        row = places // len(components)
        found = row * places.dtype.type(matrix.columns) + components[places - row * len(components)]
    return found


def _merged(parts: Sequence[Array]) -> Positions:
    if not parts:
        return np.empty(0, dtype=np.int64)
    return np.sort(np.concatenate(parts)).astype(np.int64)


BITMAP, GAPS = 1, 2
CODECS: dict[int, PositionCodec] = {
    BITMAP: PositionCodec("bitmap", encode_bitmap, decode_bitmap),
    GAPS: PositionCodec("gaps", encode_gaps, decode_gaps),
}

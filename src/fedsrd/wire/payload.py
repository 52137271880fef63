"""A delta of named tensors as bytes.

docs/wire-format.md specifies it to the byte. In short: a header of 40 bytes that names the format's version, the round
and the tensor table that both ends hold; how every tensor of the table travels; the positions; the values; a checksum.

Writing has two steps: `quantise` decides what the receiver will read, `Quantised.payload` packs it. So a sender can
know what will arrive before anything is packed, and keep what the number type took away (error feedback).

Nothing is allocated by a size that a payload claims: sizes are checked against the tensor table first.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from fedsrd import rng
from fedsrd.core.tensors import Delta, Draw, Shape, SparseTensor, TensorSpec, TensorTable, aligned
from fedsrd.errors import PayloadError
from fedsrd.wire import positions as position_codecs
from fedsrd.wire import values as value_codecs
from fedsrd.wire.envelope import Header, Kind, open_payload, seal
from fedsrd.wire.options import PositionCoding, WireOptions
from fedsrd.wire.positions import Matrix
from fedsrd.wire.reader import Reader
from fedsrd.wire.values import Place, ValueCodec
from fedsrd.wire.values import Quantised as Numbers

Array = np.ndarray[Any, Any]


MOST_DRAWS = 255
"""Different draws in one payload."""


class Travels(IntEnum):
    """How one tensor travels: two bits of a delta's body."""

    NOT = 0
    WHOLE = 1
    LISTED = 2
    DRAWN = 3


@dataclass(slots=True)
class _Part:
    """One tensor on its way into a payload."""

    spec: TensorSpec
    travels: Travels
    positions: Array | None
    numbers: Numbers
    draw: Draw | None


@dataclass(frozen=True)
class Decoded:
    """What `decode` reads.

    Attributes:
        header: the payload's header.
        delta: the changes by tensor.
        travels: how every tensor of the table travels.
        sections: (name, bytes, entropy in bits) of what was read, in order; empty unless asked for.
    """

    header: Header
    delta: dict[str, SparseTensor]
    travels: dict[str, Travels]
    sections: list[tuple[str, int, float]]


@dataclass(frozen=True)
class Quantised:
    """A delta in the numbers that travel: all that is lost on the way is lost already."""

    table: TensorTable
    options: WireOptions
    _parts: list[_Part]
    _type: tuple[int, ValueCodec]
    _block: int

    def delta(self) -> dict[str, SparseTensor]:
        """What the receiver will decode, bit for bit: values rounded to the number type, dropped zeros gone."""
        found = {}
        for part in self._parts:
            place = Place(part.spec.elements, part.positions, len(part.numbers.numbers))
            values = self._type[1].dequantise(part.numbers, place, self._block)
            where = None if part.positions is None else torch.from_numpy(part.positions)
            if len(values):
                found[part.spec.name] = SparseTensor(
                    part.spec.shape, where, aligned(torch.from_numpy(values)), part.draw
                )
        return found

    def payload(self, kind: Kind, round_number: int, version: int) -> bytes:
        """The bytes.

        Args:
            kind: UPLINK, DOWNLINK or SNAPSHOT.
            round_number: the round that it belongs to.
            version: the version of the global state that it applies to; of a snapshot, its own.

        Raises:
            ValueError: the kind is START, or SNAPSHOT and not every tensor is whole and float32; or a number does not
                fit into 32 bits.
        """
        if kind is Kind.START:
            raise ValueError("kind START: a start has no delta; use encode_start")
        parts, (number, codec) = self._parts, self._type
        if kind is Kind.SNAPSHOT and parts and not _is_plain(number, [part.travels for part in parts]):
            raise ValueError("kind SNAPSHOT: expected whole tensors, as float32")
        listed = [part for part in parts if part.travels is Travels.LISTED]
        chosen, positions = _encode_positions(listed, self.options.positions)
        block = self._block if parts else 0
        header = Header(kind, chosen, number if parts else 0, block, round_number, version, self.table.digest)
        body = [_pack_travels(self.table, parts)]
        body.append(_pack_draws([part.draw for part in parts if part.draw is not None]))
        body.append(positions)
        if parts:
            body.append(codec.pack([part.numbers for part in parts], raw=self.options.exponents == "raw"))
        return seal(header, b"".join(body))


def quantise(delta: Delta, table: TensorTable, options: WireOptions | None = None, seed: int = 0) -> Quantised:
    """A delta in the number type that travels.

    Listed elements whose value is zero, or rounds to it, do not travel.

    Args:
        delta: sparse or dense changes by tensor; tensors that are not there cost two bits.
        table: the tensors that both ends know.
        options: number type and positions; by default float32 and what is smallest.
        seed: of random rounding, where the number type and the options need it; the receiver does not.

    Raises:
        ValueError: a tensor is not in the table or has another shape there, its positions are not strictly increasing,
            or a value is not finite or beyond the number type.
    """
    options = options or WireOptions()
    number, codec = _value_type(options)
    _check(delta, table.shapes)
    block = _block(delta, options) if codec.scaled else 0
    draws = _draws(delta, table) if options.positions == "auto" else frozenset()
    parts = []
    for spec in table.specs:
        sparse = delta.get(spec.name)
        if sparse is not None and sparse.count:
            part = _part(spec, sparse, _rounded(spec, sparse, codec, block, options, seed), codec, draws)
            if part.travels is not Travels.NOT:
                parts.append(part)
    return Quantised(table, options, parts, (number, codec), block)


def encode_delta(
    delta: Delta,
    table: TensorTable,
    kind: Kind,
    round_number: int,
    version: int,
    options: WireOptions | None = None,
    seed: int = 0,
) -> bytes:
    """A delta as bytes: `quantise`, then `Quantised.payload`, whose arguments and errors these are."""
    if kind is Kind.START:
        raise ValueError("kind START: a start has no delta; use encode_start")
    return quantise(delta, table, options, seed).payload(kind, round_number, version)


def decode_delta(payload: bytes, table: TensorTable) -> tuple[Header, dict[str, SparseTensor]]:
    """Header and delta of an uplink or downlink payload; tensors are new, on the CPU, and finite.

    Raises:
        PayloadError: it is damaged, of a version or codec that this reader does not know, for another adapter, or not
            finite. Nothing larger than the table's own tensors is allocated before that is known.
    """
    decoded = decode(payload, table)
    return decoded.header, decoded.delta


def decode(payload: bytes, table: TensorTable, *, tracing: bool = False) -> Decoded:
    """As `decode_delta`, with how every tensor travels and, when `tracing`, the size and entropy of each section."""
    header, reader = open_payload(payload, table, tracing=tracing)
    if header.kind in (Kind.START, Kind.SUM):
        raise PayloadError(f"a {header.kind.name.lower()} payload: expected an uplink or downlink")
    travels = _read_travels(reader, table)
    moving = [spec for spec in table.specs if travels[spec.name] is not Travels.NOT]
    # Then a snapshot has three bytes an element, and costs no more memory than a few times its own length.
    if header.kind is Kind.SNAPSHOT and moving and not _is_plain(header.values, travels.values()):
        raise PayloadError("a snapshot: expected whole tensors, as float32")
    draws = _read_draws(reader, [spec.name for spec in moving if travels[spec.name] is Travels.DRAWN])
    matrices = [_matrix(spec) for spec in moving if travels[spec.name] is Travels.LISTED]
    listed = iter(_read_positions(reader, header, matrices))
    places = []
    for spec in moving:
        positions = None
        if travels[spec.name] is Travels.LISTED:
            positions = next(listed)
        elif spec.name in draws:
            positions = draws[spec.name].positions(spec.name, spec.elements).numpy()
        if positions is not None and not len(positions):
            raise PayloadError(f"{spec.name}: something of it travels, and yet no element is listed or drawn")
        places.append(Place(spec.elements, positions, spec.elements if positions is None else len(positions)))
    values = _read_values(reader, header, places)
    reader.end()
    delta = {}
    for spec, place, numbers in zip(moving, places, values, strict=True):
        if not np.isfinite(numbers).all():
            raise PayloadError(f"{spec.name}: a value is NaN or infinite")
        where = None if place.positions is None else torch.from_numpy(place.positions)
        delta[spec.name] = SparseTensor(spec.shape, where, aligned(torch.from_numpy(numbers)), draws.get(spec.name))
    return Decoded(header, delta, travels, reader.trace or [])


def is_finite(delta: Delta) -> bool:
    """True when no value of the delta is NaN or infinite."""
    return all(bool(torch.isfinite(sparse.values).all()) for sparse in delta.values())


def _is_plain(values: int, travels: Iterable[Travels]) -> bool:
    """Whether nothing but whole tensors of float32 travel."""
    return values == value_codecs.FLOAT32 and set(travels) <= {Travels.NOT, Travels.WHOLE}


def _value_type(options: WireOptions) -> tuple[int, ValueCodec]:
    return next((number, codec) for number, codec in value_codecs.TYPES.items() if codec.name == options.values)


def _check(delta: Delta, shapes: Mapping[str, Shape]) -> None:
    for name, sparse in delta.items():
        if shapes.get(name) != tuple(sparse.shape):
            raise ValueError(f"{name} with shape {sparse.shape}: the tensor table says {shapes.get(name, 'nothing')}")
        if sparse.positions is not None and sparse.draw is None and not (sparse.positions.diff() > 0).all():
            raise ValueError(f"{name}: positions must be strictly increasing")
        if sparse.positions is not None and sparse.count:
            first, last = int(sparse.positions[0]), int(sparse.positions[-1])
            if first < 0 or last >= sparse.elements:
                raise ValueError(
                    f"{name}: positions {first} to {last}: expected positions from 0 to {sparse.elements - 1}"
                )


def _block(delta: Delta, options: WireOptions) -> int:
    """Elements of a tensor under one scale, so that a scale has `options.block` values on average."""
    count = sum(sparse.count for sparse in delta.values())
    elements = sum(sparse.elements for sparse in delta.values() if sparse.count)
    return min(max(round(options.block * elements / count), 1), (1 << 32) - 1) if count else options.block


def _as_read(draw: Draw) -> Draw:
    """The draw as a payload says it, in words of 32 bits: another one of the same elements, at most."""
    low, high = rng.bounds(draw.keep, draw.first)
    return Draw(draw.seed, (high - low) / (1 << 32), low / (1 << 32))


def _draws(delta: Delta, table: TensorTable) -> frozenset[Draw]:
    """The draws that a payload names, as they are read: the first ones in the table's order; tensors of others, and of
    those that take every element, are listed.
    """
    found: dict[Draw, None] = {}
    for spec in table.specs:
        sparse = delta.get(spec.name)
        if sparse is None or sparse.draw is None or not sparse.count:
            continue
        draw = _as_read(sparse.draw)
        if 0 < draw.keep < 1 and len(found) < MOST_DRAWS:
            found[draw] = None
    return frozenset(found)


def _rounded(
    spec: TensorSpec, sparse: SparseTensor, codec: ValueCodec, block: int, options: WireOptions, seed: int
) -> Numbers:
    """The values of one tensor in the number type. Raises ValueError, with the tensor's name."""
    values = sparse.values.detach().cpu().numpy()
    positions = None if sparse.positions is None else sparse.positions.cpu().numpy()
    at_random = codec.scaled and options.threshold is None
    uniform = rng.fraction(len(values), seed, "rounding", spec.name) if at_random else None
    try:
        return codec.quantise(values, Place(spec.elements, positions, len(values)), block, uniform, options.threshold)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None


def _part(spec: TensorSpec, sparse: SparseTensor, numbers: Numbers, codec: ValueCodec, draws: frozenset[Draw]) -> _Part:
    """How one tensor travels, with these numbers; zeros of a drawn one too."""
    if sparse.positions is None:
        return _Part(spec, Travels.WHOLE, None, numbers, None)
    positions = sparse.positions.cpu().numpy()
    draw = None if sparse.draw is None else _as_read(sparse.draw)
    if draw is not None and draw in draws:
        return _Part(spec, Travels.DRAWN, positions, numbers, draw)
    kept = codec.kept(numbers)
    if not kept.all():
        positions, numbers = positions[kept], Numbers(numbers.numbers[kept], numbers.scales)
    if len(positions) == spec.elements:
        return _Part(spec, Travels.WHOLE, None, numbers, None)
    return _Part(spec, Travels.LISTED if len(positions) else Travels.NOT, positions, numbers, None)


def _matrix(spec: TensorSpec) -> Matrix:
    """As the position codecs see it: LoRA factors by rank components, any other by rows of its last dimension."""
    columns = spec.shape[-1] if spec.shape else 1
    return Matrix(spec.name, math.prod(spec.shape[:-1]), columns, by_row=spec.role != "lora_B")


def _encode_positions(parts: Sequence[_Part], wanted: PositionCoding) -> tuple[int, bytes]:
    """Number of the codec and its bytes; 0 and nothing where nothing is listed."""
    if not parts:
        return 0, b""
    matrices = [_matrix(part.spec) for part in parts]
    found = [part.positions for part in parts if part.positions is not None]
    names = {codec.name: number for number, codec in position_codecs.CODECS.items()}
    if wanted != "auto":
        number = names[wanted]
        return number, position_codecs.CODECS[number].encode(matrices, found)
    gaps = position_codecs.encode_gaps(matrices, found)
    if len(gaps) <= sum((matrix.elements + 7) // 8 for matrix in matrices):
        return position_codecs.GAPS, gaps
    return position_codecs.BITMAP, position_codecs.encode_bitmap(matrices, found)


def _pack_travels(table: TensorTable, parts: Sequence[_Part]) -> bytes:
    known = {part.spec.name: int(part.travels) for part in parts}
    codes = np.array([known.get(spec.name, 0) for spec in table.specs], dtype=np.uint8)
    bits = np.stack((codes & 1, codes >> 1), axis=1)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _read_travels(reader: Reader, table: TensorTable) -> dict[str, Travels]:
    count = len(table.specs)
    packed = reader.array("u1", (count + 3) // 4, "tensors")
    bits = np.unpackbits(packed, bitorder="little")
    if bits[2 * count :].any():
        raise PayloadError(f"tensors: bits are set after those of the {count} tensors")
    pairs = bits[: 2 * count].reshape(-1, 2)
    travels = {}
    for spec, (low, high) in zip(table.specs, pairs.tolist(), strict=True):
        travels[spec.name] = Travels(low + 2 * high)
        if travels[spec.name] is not Travels.NOT and not spec.elements:
            raise PayloadError(f"{spec.name}: has no elements, and yet something travels")
    return travels


def _pack_draws(draws: Sequence[Draw]) -> bytes:
    """The draw of every drawn tensor: how many different ones, these, and which is whose where there are several."""
    if not draws:
        return b""
    number = {draw: i for i, draw in enumerate(dict.fromkeys(draws))}
    body = [bytes([len(number)])]
    for draw in number:
        low, high = rng.bounds(draw.keep, draw.first)
        body.append(struct.pack("<QII", draw.seed, low, high - 1))
    if len(number) > 1:
        body.append(bytes(number[draw] for draw in draws))
    return b"".join(body)


def _read_draws(reader: Reader, names: Sequence[str]) -> dict[str, Draw]:
    """The draw of each of these tensors. Raises PayloadError."""
    if not names:
        return {}
    began = reader.at
    count = reader.number("u1", "draws")
    if not 1 <= count <= len(names):
        raise PayloadError(f"draws: {count} for {len(names)} drawn tensors: expected 1 to as many draws as tensors")
    draws = [_read_draw(reader) for _ in range(count)]
    chosen = reader.array("u1", len(names), "draw of each tensor").tolist() if count > 1 else [0] * len(names)
    for name, number in zip(names, chosen, strict=True):
        if number >= count:
            raise PayloadError(f"{name}: of draw {number}, and there are {count}, from 0")
    unused = sorted(set(range(count)) - set(chosen))
    if unused:
        raise PayloadError(f"draw {unused[0]}: no tensor is of it; expected none that is not used")
    reader.note("draws", reader.at - began, 8.0 * (reader.at - began))
    return {name: draws[number] for name, number in zip(names, chosen, strict=True)}


def _read_draw(reader: Reader) -> Draw:
    seed, first, last = reader.number("<u8", "draw"), reader.number("<u4", "draw"), reader.number("<u4", "draw")
    if last < first:
        raise PayloadError(f"draw: keeps no element: words from {first} to {last}; expected a last that is not below")
    return Draw(seed, (last + 1 - first) / (1 << 32), first / (1 << 32))


def _read_positions(reader: Reader, header: Header, matrices: Sequence[Matrix]) -> list[Array]:
    if not matrices:
        if header.positions:
            raise PayloadError(f"position codec {header.positions} and no listed tensor: expected 0")
        return []
    _check_known("position codec", header.positions, position_codecs.CODECS)
    return position_codecs.CODECS[header.positions].decode(reader, matrices)


def _read_values(reader: Reader, header: Header, places: Sequence[Place]) -> list[Array]:
    if not places:
        if header.values or header.block:
            raise PayloadError(f"value type {header.values}, block {header.block} and no values: expected 0 and 0")
        return []
    _check_known("value type", header.values, value_codecs.TYPES)
    codec = value_codecs.TYPES[header.values]
    if codec.scaled != (header.block > 0):
        raise PayloadError(f"block {header.block} with {codec.name}: scaled types have a block, others have 0")
    return codec.unpack(reader, places, header.block)


def _check_known(what: str, number: int, known: Mapping[int, Any]) -> None:
    if number not in known:
        names = ", ".join(f"{key} {entry.name}" for key, entry in known.items())
        raise PayloadError(f"{what} {number}: this reader knows {names}; upgrade it")

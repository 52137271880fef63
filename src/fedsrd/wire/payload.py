"""A delta of LoRA factors as bytes.

docs/wire-format.md specifies it to the byte. In short: a header of 40 bytes that names the format's version, the round
and the shape table that both ends hold; how every slot of the table travels; the positions; the values; a checksum.

Nothing is allocated by a size that a payload claims: sizes are checked against the shape table first.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch

from fedsrd import rng
from fedsrd.core.factors import Delta, Draw, ShapeTable, Slot, SparseTensor
from fedsrd.errors import PayloadError
from fedsrd.wire import positions as position_codings
from fedsrd.wire import values as value_codings
from fedsrd.wire.coding import Coding, PositionCoding
from fedsrd.wire.envelope import Header, Kind, open_payload, seal
from fedsrd.wire.positions import Matrix
from fedsrd.wire.reader import Reader
from fedsrd.wire.values import Place, Quantised, ValueCoding

Array = np.ndarray[Any, Any]


class Travels(IntEnum):
    """How one slot travels: two bits of a delta's body."""

    NOT = 0
    WHOLE = 1
    LISTED = 2
    DRAWN = 3


@dataclass(slots=True)
class _Part:
    """One slot on its way into a payload."""

    slot: Slot
    shape: tuple[int, int]
    travels: Travels
    positions: Array | None
    quantised: Quantised


@dataclass(frozen=True)
class Decoded:
    """What `decode` reads.

    Attributes:
        header: the payload's header.
        delta: the changes by slot.
        travels: how every slot of the table travels.
        sections: (name, bytes, entropy in bits) of what was read, in order; empty unless asked for.
    """

    header: Header
    delta: dict[Slot, SparseTensor]
    travels: dict[Slot, Travels]
    sections: list[tuple[str, int, float]]


def encode_delta(
    delta: Delta,
    table: ShapeTable,
    kind: Kind,
    round_number: int,
    version: int,
    coding: Coding | None = None,
    seed: int = 0,
) -> bytes:
    """A delta as bytes.

    Listed elements whose value is zero, or rounds to it, do not travel.

    Args:
        delta: sparse or dense changes by slot; slots that are not there cost two bits.
        table: the shapes that both ends know.
        kind: UPLINK or DOWNLINK.
        round_number: the round that it belongs to.
        version: the version of the global state that it applies to.
        coding: number type and position coding; by default float32 and what is smallest.
        seed: of random rounding, where the number type needs it; the receiver does not.

    Raises:
        ValueError: a slot is not in the table or has another shape there, its positions are not strictly increasing,
            a value is not finite or beyond the number type, or the kind is START.
    """
    if kind is Kind.START:
        raise ValueError("kind START: a start has no delta; use encode_start")
    coding = coding or Coding()
    number, type_ = _value_type(coding)
    shapes = table.shapes
    _check(delta, shapes)
    block = _block(delta, coding) if type_.scaled else 0
    draw = _common_draw(delta) if coding.positions == "auto" else None
    parts = []
    for slot in shapes:
        sparse = delta.get(slot)
        if sparse is not None and sparse.count:
            part = _part(slot, sparse, type_, block, draw, seed)
            if part.travels is not Travels.NOT:
                parts.append(part)
    listed = [part for part in parts if part.travels is Travels.LISTED]
    chosen, positions = _encode_positions(listed, coding.positions)
    header = Header(kind, chosen, number if parts else 0, block if parts else 0, round_number, version, table.digest)
    body = [_pack_travels(shapes, parts)]
    if draw is not None and any(part.travels is Travels.DRAWN for part in parts):
        body.append(struct.pack("<QI", draw.seed, rng.threshold(draw.keep)))
    body.append(positions)
    if parts:
        body.append(type_.pack([part.quantised for part in parts], raw=coding.exponents == "raw"))
    return seal(header, b"".join(body))


def decode_delta(payload: bytes, table: ShapeTable) -> tuple[Header, dict[Slot, SparseTensor]]:
    """Header and delta of an uplink or downlink payload; tensors are new, on the CPU, and finite.

    Raises:
        PayloadError: it is damaged, of a version or coding that this reader does not know, for another adapter, or not
            finite. Nothing larger than the shape table's own tensors is allocated before that is known.
    """
    decoded = decode(payload, table)
    return decoded.header, decoded.delta


def decode(payload: bytes, table: ShapeTable, *, tracing: bool = False) -> Decoded:
    """As `decode_delta`, with how every slot travels and, when `tracing`, the size and entropy of each section."""
    header, reader = open_payload(payload, table, tracing=tracing)
    if header.kind is Kind.START:
        raise PayloadError("a start payload: expected an uplink or downlink")
    shapes = table.shapes
    travels = _read_travels(reader, shapes)
    moving = [(slot, shapes[slot]) for slot, how in travels.items() if how is not Travels.NOT]
    draw = None
    if Travels.DRAWN in travels.values():
        draw = _read_draw(reader)
    matrices = [_matrix(slot, shape) for slot, shape in moving if travels[slot] is Travels.LISTED]
    listed = iter(_read_positions(reader, header, matrices))
    places, found = [], []
    for slot, (rows, columns) in moving:
        elements, positions = rows * columns, None
        if travels[slot] is Travels.LISTED:
            positions = next(listed)
        elif travels[slot] is Travels.DRAWN and draw is not None:
            positions = draw.positions(slot, elements).numpy()
        places.append(Place(elements, positions, elements if positions is None else len(positions)))
        found.append((slot, (rows, columns), draw if travels[slot] is Travels.DRAWN else None))
    values = _read_values(reader, header, places)
    reader.end()
    delta = {}
    for (slot, shape, drawn), place, numbers in zip(found, places, values, strict=True):
        if not np.isfinite(numbers).all():
            raise PayloadError(f"{slot.module} {slot.factor}: a value is NaN or infinite")
        if len(numbers):
            where = None if place.positions is None else torch.from_numpy(place.positions)
            delta[slot] = SparseTensor(shape, where, torch.from_numpy(numbers), drawn)
    return Decoded(header, delta, travels, reader.trace or [])


def is_finite(delta: Delta) -> bool:
    """True when no value of the delta is NaN or infinite."""
    return all(bool(torch.isfinite(sparse.values).all()) for sparse in delta.values())


def _value_type(coding: Coding) -> tuple[int, ValueCoding]:
    return next((number, type_) for number, type_ in value_codings.TYPES.items() if type_.name == coding.values)


def _check(delta: Delta, shapes: dict[Slot, tuple[int, int]]) -> None:
    for slot, sparse in delta.items():
        if shapes.get(slot) != sparse.shape:
            raise ValueError(f"{slot} with shape {sparse.shape}: the shape table says {shapes.get(slot, 'nothing')}")
        if sparse.positions is not None and sparse.draw is None and not (sparse.positions.diff() > 0).all():
            raise ValueError(f"{slot}: positions must be strictly increasing")
        if sparse.positions is not None and sparse.count:
            first, last = int(sparse.positions[0]), int(sparse.positions[-1])
            if first < 0 or last >= sparse.elements:
                raise ValueError(
                    f"{slot}: positions {first} to {last}: expected positions from 0 to {sparse.elements - 1}"
                )


def _block(delta: Delta, coding: Coding) -> int:
    """Elements of a matrix under one scale, so that a scale has `coding.block` values on average."""
    count = sum(sparse.count for sparse in delta.values())
    elements = sum(sparse.elements for sparse in delta.values() if sparse.count)
    return min(max(round(coding.block * elements / count), 1), (1 << 32) - 1) if count else coding.block


def _common_draw(delta: Delta) -> Draw | None:
    """The draw that a payload names: that of the first drawn slot; slots of another draw are listed."""
    draws = (sparse.draw for sparse in delta.values() if sparse.count)
    return next((draw for draw in draws if draw is not None and 0 < rng.threshold(draw.keep) < 1 << 32), None)


def _part(slot: Slot, sparse: SparseTensor, type_: ValueCoding, block: int, draw: Draw | None, seed: int) -> _Part:
    values = sparse.values.detach().cpu().numpy()
    positions = None if sparse.positions is None else sparse.positions.cpu().numpy()
    uniform = rng.fraction(len(values), seed, "rounding", slot.module, slot.factor) if type_.scaled else None
    try:
        quantised = type_.quantise(values, Place(sparse.elements, positions, len(values)), block, uniform)
    except ValueError as error:
        raise ValueError(f"{slot.module} {slot.factor}: {error}") from None
    if positions is None:
        return _Part(slot, sparse.shape, Travels.WHOLE, None, quantised)
    if draw is not None and sparse.draw == draw:
        return _Part(slot, sparse.shape, Travels.DRAWN, None, quantised)
    kept = type_.kept(quantised)
    if not kept.all():
        positions, quantised = positions[kept], Quantised(quantised.numbers[kept], quantised.scales)
    if len(positions) == sparse.elements:
        return _Part(slot, sparse.shape, Travels.WHOLE, None, quantised)
    return _Part(slot, sparse.shape, Travels.LISTED if len(positions) else Travels.NOT, positions, quantised)


def _matrix(slot: Slot, shape: tuple[int, int]) -> Matrix:
    return Matrix(f"{slot.module} {slot.factor}", *shape, by_row=slot.factor == "A")


def _encode_positions(parts: Sequence[_Part], wanted: PositionCoding) -> tuple[int, bytes]:
    """Number of the coding and its bytes; 0 and nothing where nothing is listed."""
    if not parts:
        return 0, b""
    matrices = [_matrix(part.slot, part.shape) for part in parts]
    found = [part.positions for part in parts if part.positions is not None]
    names = {coding.name: number for number, coding in position_codings.CODINGS.items()}
    if wanted != "auto":
        number = names[wanted]
        return number, position_codings.CODINGS[number].encode(matrices, found)
    gaps = position_codings.encode_gaps(matrices, found)
    if len(gaps) <= sum((matrix.elements + 7) // 8 for matrix in matrices):
        return position_codings.GAPS, gaps
    return position_codings.BITMAP, position_codings.encode_bitmap(matrices, found)


def _pack_travels(shapes: dict[Slot, tuple[int, int]], parts: Sequence[_Part]) -> bytes:
    known = {part.slot: int(part.travels) for part in parts}
    codes = np.array([known.get(slot, 0) for slot in shapes], dtype=np.uint8)
    bits = np.stack((codes & 1, codes >> 1), axis=1)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _read_travels(reader: Reader, shapes: dict[Slot, tuple[int, int]]) -> dict[Slot, Travels]:
    packed = reader.array("u1", (len(shapes) + 3) // 4, "slots")
    bits = np.unpackbits(packed, bitorder="little")
    if bits[2 * len(shapes) :].any():
        raise PayloadError(f"slots: bits are set after those of the {len(shapes)} slots")
    pairs = bits[: 2 * len(shapes)].reshape(-1, 2)
    travels = {}
    for (slot, (rows, columns)), (low, high) in zip(shapes.items(), pairs.tolist(), strict=True):
        travels[slot] = Travels(low + 2 * high)
        if travels[slot] is not Travels.NOT and not rows * columns:
            raise PayloadError(f"{slot.module} {slot.factor}: has no elements, and yet something travels")
    return travels


def _read_draw(reader: Reader) -> Draw:
    seed, threshold = reader.number("<u8", "draw"), reader.number("<u4", "draw")
    if not threshold:
        raise PayloadError("draw: keeps no element; expected a probability above 0")
    return Draw(seed, threshold / (1 << 32))


def _read_positions(reader: Reader, header: Header, matrices: Sequence[Matrix]) -> list[Array]:
    if not matrices:
        if header.positions:
            raise PayloadError(f"position coding {header.positions} and no listed slot: expected 0")
        return []
    _check_known("position coding", header.positions, position_codings.CODINGS)
    return position_codings.CODINGS[header.positions].decode(reader, matrices)


def _read_values(reader: Reader, header: Header, places: Sequence[Place]) -> list[Array]:
    if not places:
        if header.values or header.block:
            raise PayloadError(f"value type {header.values}, block {header.block} and no values: expected 0 and 0")
        return []
    _check_known("value type", header.values, value_codings.TYPES)
    type_ = value_codings.TYPES[header.values]
    if type_.scaled != (header.block > 0):
        raise PayloadError(f"block {header.block} with {type_.name}: scaled types have a block, others have 0")
    return type_.unpack(reader, places, header.block)


def _check_known(what: str, number: int, known: Mapping[int, Any]) -> None:
    if number not in known:
        names = ", ".join(f"{key} {entry.name}" for key, entry in known.items())
        raise PayloadError(f"{what} {number}: this reader knows {names}; upgrade it")

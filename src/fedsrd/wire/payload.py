"""The payload: one delta of LoRA factors as bytes, or the seed of their common start.

All numbers are little-endian. A payload is

    offset  size  what
    0       4     magic "FSRD"
    4       1     format version, 1
    5       1     kind: 0 start, 1 uplink, 2 downlink
    6       1     coding of positions (see `positions.CODINGS`)
    7       1     coding of values (see `values.CODINGS`)
    8       4     round, uint32: the round that the delta belongs to (0 for a start)
    12      4     version, uint32: the version of the global state that the delta applies to
    16      16    digest of the shape table (BLAKE2b-128); names and shapes never travel
    32      ...   body
    end-16  16    BLAKE2b-128 of all bytes before it

The body of a start is the seed (uint64). The body of a delta is, for every slot of the shape table in order, a uint64:
0 when the slot does not change, 2 count for `count` elements at coded positions, 2 elements + 1 for all of them; then
the coded positions of every slot that has some, then the values of every slot. The checksum finds accidents; it is no
signature.

Nothing is allocated by a size that a payload claims: sizes are checked against the shape table first.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from fedsrd.core.factors import Delta, ShapeTable, Slot, SparseTensor
from fedsrd.errors import PayloadError
from fedsrd.wire import positions as position_codings
from fedsrd.wire import values as value_codings

MAGIC = b"FSRD"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sBBBBII16s")
_CHECKSUM = 16


class Kind(IntEnum):
    """What a payload is for."""

    START = 0
    UPLINK = 1
    DOWNLINK = 2


@dataclass(frozen=True, slots=True)
class Header:
    """The first 32 bytes of a payload, read and checked."""

    kind: Kind
    positions: int
    values: int
    round: int
    version: int
    table_digest: bytes


def encode_start(seed: int, table: ShapeTable) -> bytes:
    """The common start as bytes: both ends expand it with `core.factors.initial_factors`. 56 bytes."""
    return _seal(Header(Kind.START, 0, 0, 0, 0, table.digest), struct.pack("<Q", seed))


def decode_start(payload: bytes, table: ShapeTable) -> int:
    """The seed of a start payload.

    Raises:
        PayloadError: it is damaged, of another kind, or for another adapter.
    """
    header, body = _open(payload, table)
    if header.kind is not Kind.START or len(body) != 8:
        raise PayloadError(f"a {header.kind.name.lower()} payload of {len(body)} body bytes: expected a start of 8")
    return int(struct.unpack("<Q", body)[0])


def encode_delta(delta: Delta, table: ShapeTable, kind: Kind, round_number: int, version: int) -> bytes:
    """A delta as bytes, in the paper's own format: a bitmap for positions (none where all travel), float32 values.

    Args:
        delta: sparse or dense changes by slot; slots that are not there cost eight bytes.
        table: the shapes that both ends know.
        kind: UPLINK or DOWNLINK.
        round_number: the round that it belongs to.
        version: the version of the global state that it applies to.

    Raises:
        ValueError: a slot is not in the table or has another shape there, its positions are not strictly increasing,
            or the kind is START.
    """
    if kind is Kind.START:
        raise ValueError("kind START: a start has no delta; use encode_start")
    shapes = table.shapes
    for slot, sparse in delta.items():
        if shapes.get(slot) != sparse.shape:
            raise ValueError(f"{slot} with shape {sparse.shape}: the shape table says {shapes.get(slot, 'nothing')}")
        if sparse.positions is not None and not (sparse.positions.diff() > 0).all():
            raise ValueError(f"{slot}: positions must be strictly increasing")
    position_coding = position_codings.CODINGS[position_codings.BITMAP]
    value_coding = value_codings.CODINGS[value_codings.FLOAT32]
    counts, coded_positions, coded_values = [], [], []
    for slot in shapes:
        if slot not in delta:
            counts.append(0)
            continue
        sparse = delta[slot]
        counts.append(2 * sparse.count + (sparse.positions is None))
        if sparse.positions is not None and sparse.count:
            coded_positions.append(position_coding.encode(sparse.positions.cpu().numpy(), sparse.elements))
        coded_values.append(value_coding.encode(sparse.values.detach().cpu().numpy()))
    header = Header(kind, position_codings.BITMAP, value_codings.FLOAT32, round_number, version, table.digest)
    body = [struct.pack(f"<{len(counts)}Q", *counts), *coded_positions, *coded_values]
    return _seal(header, b"".join(body))


def decode_delta(payload: bytes, table: ShapeTable) -> tuple[Header, dict[Slot, SparseTensor]]:
    """Header and delta of an uplink or downlink payload; tensors are new, on the CPU.

    Raises:
        PayloadError: it is damaged, of a version or coding that this reader does not know, or for another adapter.
            Nothing larger than the shape table's own tensors is allocated before that is known.
    """
    header, body = _open(payload, table)
    if header.kind is Kind.START:
        raise PayloadError("a start payload: expected an uplink or downlink")
    position_coding = position_codings.CODINGS.get(header.positions)
    value_coding = value_codings.CODINGS.get(header.values)
    if position_coding is None or value_coding is None:
        raise PayloadError(
            f"codings {header.positions} and {header.values}: this reader does not know them; upgrade it"
        )
    shapes = table.shapes
    view = body[8 * len(shapes) :]
    found: list[tuple[Slot, tuple[int, int], torch.Tensor | None, int]] = []
    for (slot, shape), entry in zip(shapes.items(), _entries(body, len(shapes)), strict=True):
        count, whole, elements = entry >> 1, bool(entry & 1), shape[0] * shape[1]
        if count > elements or (whole and count != elements):
            raise PayloadError(f"{slot.module} {slot.factor}: {count} values for {elements} elements")
        indices = None
        if count and not whole:
            decoded, used = position_coding.decode(view, elements, count)
            indices, view = torch.from_numpy(decoded), view[used:]
        if count:
            found.append((slot, shape, indices, count))
    delta = {}
    for slot, shape, indices, count in found:
        numbers, used = value_coding.decode(view, count)
        view = view[used:]
        delta[slot] = SparseTensor(shape, indices, torch.from_numpy(numbers))
    if len(view):
        raise PayloadError(f"{len(view)} bytes too many after the last value")
    return header, delta


def read_header(payload: bytes) -> Header:
    """The header alone, with the checksum verified, for who does not hold the shape table.

    Raises:
        PayloadError: it is no payload, damaged, or of a format version that this reader does not know.
    """
    if len(payload) < _HEADER.size + _CHECKSUM:
        raise PayloadError(f"{len(payload)} bytes: a payload has at least {_HEADER.size + _CHECKSUM}")
    magic, version, kind, *rest = _HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise PayloadError(f"starts with {magic!r}: expected {MAGIC!r}, so this is no FedSRD payload")
    if version != FORMAT_VERSION:
        raise PayloadError(
            f"format version {version}: this reader knows version {FORMAT_VERSION}; upgrade the older end"
        )
    if _checksum(memoryview(payload)[:-_CHECKSUM]) != payload[-_CHECKSUM:]:
        raise PayloadError("checksum does not match: the payload was damaged on its way")
    if kind not in list(Kind):
        raise PayloadError(f"kind {kind}: this reader knows {', '.join(f'{k.value} {k.name.lower()}' for k in Kind)}")
    return Header(Kind(kind), *rest)


def is_finite(delta: Delta) -> bool:
    """True when no value of the delta is NaN or infinite."""
    return all(bool(torch.isfinite(sparse.values).all()) for sparse in delta.values())


def _entries(body: memoryview, slots: int) -> list[int]:
    if len(body) < 8 * slots:
        raise PayloadError(f"{len(body)} body bytes: the counts of {slots} slots need {8 * slots}: truncated")
    return [int(entry) for entry in np.frombuffer(body[: 8 * slots], dtype="<u8")]


def _seal(header: Header, body: bytes) -> bytes:
    codings = (header.positions, header.values)
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, header.kind, *codings, header.round, header.version, header.table_digest)
    return b"".join((head, body, _checksum(head, body)))


def _open(payload: bytes, table: ShapeTable) -> tuple[Header, memoryview]:
    header = read_header(payload)
    if header.table_digest != table.digest:
        raise PayloadError(
            f"shape table {header.table_digest.hex()}: expected {table.digest.hex()}; "
            "the sender adapts another model, other modules or another rank"
        )
    return header, memoryview(payload)[_HEADER.size : -_CHECKSUM]


def _checksum(*parts: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(digest_size=_CHECKSUM)
    for part in parts:
        hasher.update(part)
    return hasher.digest()

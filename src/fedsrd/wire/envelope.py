"""The outside of every payload: header, checksum, and the checks that come before anything of it is believed."""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from fedsrd.core.tensors import TensorTable
from fedsrd.errors import PayloadError
from fedsrd.wire.reader import Reader

MAGIC = b"FSRD"
FORMAT_VERSION = 4
"""Versions 1 to 3 were used before the first release; no reader of them is kept."""

_HEADER = struct.Struct("<4sBBBBB3sIII16s")
_CHECKSUM = 16
HEADER_SIZE = _HEADER.size
OUTSIDE = HEADER_SIZE + _CHECKSUM
"""Bytes of a payload besides its body."""
_WORD = 1 << 32


class Kind(IntEnum):
    """What a payload is for."""

    START = 0
    UPLINK = 1
    DOWNLINK = 2
    SNAPSHOT = 3
    SUM = 4


@dataclass(frozen=True, slots=True)
class Header:
    """The first 40 bytes of a payload, read and checked.

    Attributes:
        kind: what the payload is for.
        positions: number of the position coding, 0 for none.
        values: number of the value type, 0 for none.
        block: elements of a matrix under one scale, 0 for types without scales.
        round: the round that the delta belongs to.
        version: the version of the global state that it applies to.
        table_digest: which tensor table both ends must hold.
    """

    kind: Kind
    positions: int
    values: int
    block: int
    round: int
    version: int
    table_digest: bytes


def seal(header: Header, body: bytes) -> bytes:
    """Header, body and checksum as one payload.

    Raises:
        ValueError: a number of the header is negative or needs more than 32 bits.
    """
    for name, number in (("round", header.round), ("version", header.version), ("block", header.block)):
        if not 0 <= number < _WORD:
            raise ValueError(f"{name} {number}: expected 0 <= {name} < 2**32")
    head = _HEADER.pack(
        MAGIC, FORMAT_VERSION, header.kind, 0, header.positions, header.values, bytes(3), header.block, header.round,
        header.version, header.table_digest,
    )  # fmt: skip
    return b"".join((head, body, _checksum(head, body)))


def read_header(payload: bytes) -> Header:
    """The header alone, with the checksum verified, for who does not hold the tensor table.

    Raises:
        PayloadError: it is no payload, damaged, or of a format version that this reader does not know.
    """
    if len(payload) < HEADER_SIZE + _CHECKSUM:
        raise PayloadError(f"{len(payload)} bytes: a payload has at least {HEADER_SIZE + _CHECKSUM}")
    magic, version, kind, flags, positions, values, reserved, *rest = _HEADER.unpack_from(payload)
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
    if flags or any(reserved):
        raise PayloadError(f"flags {flags} and {reserved.hex()}: this reader of version {FORMAT_VERSION} knows none")
    return Header(Kind(kind), positions, values, *rest)


def open_payload(payload: bytes, table: TensorTable, *, tracing: bool = False) -> tuple[Header, Reader]:
    """The header and a reader of the body, when the payload is whole and for this table.

    Raises:
        PayloadError: as `read_header`, or it is for another adapter.
    """
    header = read_header(payload)
    if header.table_digest != table.digest:
        raise PayloadError(
            f"tensor table {header.table_digest.hex()}: expected {table.digest.hex()}; "
            "the sender adapts another model, other modules or another rank"
        )
    return header, Reader(memoryview(payload)[HEADER_SIZE:-_CHECKSUM], HEADER_SIZE, tracing=tracing)


def encode_start(seed: int, table: TensorTable) -> bytes:
    """The common start as bytes: both ends expand it with `core.tensors.initial_tensors`. 64 bytes.

    Raises:
        ValueError: the seed is negative or needs more than 64 bits.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed}: expected 0 <= seed < 2**64")
    return seal(Header(Kind.START, 0, 0, 0, 0, 0, table.digest), struct.pack("<Q", seed))


def decode_start(payload: bytes, table: TensorTable) -> int:
    """The seed of a start payload.

    Raises:
        PayloadError: it is damaged, of another kind, or for another adapter.
    """
    header, reader = open_payload(payload, table)
    if header != Header(Kind.START, 0, 0, 0, 0, 0, table.digest):
        raise PayloadError(f"{header.kind.name.lower()} of round {header.round}: expected a start, which has no round")
    seed = reader.number("<u8", "seed")
    reader.end()
    return seed


def _checksum(*parts: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(digest_size=_CHECKSUM)
    for part in parts:
        hasher.update(part)
    return hasher.digest()

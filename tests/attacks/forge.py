"""What the programs here share: a victim with a small adapter, and the means to put any bytes behind a good checksum.

Each program is one known abuse. It makes a payload and must be refused with a message, at once, and at no more cost
than the adapter's own size: `python tests/attacks/NAME.py` shows the refusal; `test_attacks.py` runs them all.
"""

import hashlib
import re
import struct
import sys

from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import PayloadError
from fedsrd.wire import decode_delta

TABLE = table_of([LoraModule("q", 3, 5, 2), LoraModule("v", 2, 9, 1)])
"""Tensors: q.lora_B.weight (3, 2), q.lora_A.weight (2, 5), v.lora_B.weight (2, 1), v.lora_A.weight (1, 9)."""

NOT, WHOLE, LISTED, DRAWN = range(4)
RAW_FLOATS = b"\0"


def forge(
    body: bytes, *, kind=1, flags=0, positions=0, values=1, reserved=bytes(3), block=0, digest=TABLE.digest, version=4
) -> bytes:
    """A header of one's choice, a body, and a checksum that fits."""
    head = struct.pack(
        "<4sBBBBB3sIII16s", b"FSRD", version, kind, flags, positions, values, reserved, block, 3, 2, digest
    )
    return head + body + hashlib.blake2b(head + body, digest_size=16).digest()


def tensors(*ways: int) -> bytes:
    """How up to four tensors travel."""
    return bytes([sum(way << 2 * i for i, way in enumerate(ways))])


def one_symbol(symbol: int) -> bytes:
    """A histogram section that says "all of them are this" in four bytes."""
    return bytes([0, symbol]) + struct.pack("<H", 1)


def floats(*values: float) -> bytes:
    """A raw float32 section."""
    return RAW_FLOATS + struct.pack(f"<{len(values)}f", *values)


def stream(*words: int, declared: int | None = None) -> bytes:
    """An entropy-coded stream that may lie about its length."""
    return struct.pack(f"<I{len(words)}I", len(words) if declared is None else declared, *words)


def refused(payload: bytes, message: str, table: TensorTable = TABLE) -> str:
    """The refusal. Raises AssertionError when the payload is taken, or refused for another reason."""
    try:
        decode_delta(payload, table)
    except PayloadError as error:
        reason = str(error)
    else:
        raise AssertionError("the payload was taken")
    assert re.search(message, reason), f"refused, but not for this: {reason}"
    return reason


def show(attack: str, payload: bytes, message: str, table: TensorTable = TABLE) -> None:
    """For the programs' main: one line."""
    sys.stdout.write(f"{attack}: {len(payload)} bytes, refused: {refused(payload, message, table)}\n")

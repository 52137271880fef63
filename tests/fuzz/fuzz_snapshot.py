"""Fuzzing of whole states: what a server sends to a client that joins, or is too far behind.

An input is one byte for kind and value type, one for what is cut off for the change of the base weights, then bodies of
the two payloads. Headers, digests and checksums are put around them. The reader must give the whole state that its
payload says, or raise PayloadError.
"""

import hashlib
import struct
from collections.abc import Iterable

import atheris
import harness

with atheris.instrument_imports(include=["fedsrd.wire", "fedsrd.federation.snapshot"]):
    import torch
    from toy import TABLE, Federation, build

    from fedsrd.errors import PayloadError
    from fedsrd.federation import snapshot
    from fedsrd.federation.messages import Snapshot

BASE = snapshot.base_table(TABLE)


def payload(body: bytes, control: int, table) -> bytes:
    """A body with a header and a checksum around it."""
    kind, codec, type_ = 3 - (control & 1), control >> 1 & 3, control >> 3 & 7
    head = struct.pack("<4sBBBBB3sIII16s", b"FSRD", 4, kind, 0, codec, type_, bytes(3), 0, 2, 2, table.digest)
    return head + body + hashlib.blake2b(head + body, digest_size=16).digest()


def one_input(data: bytes) -> None:
    """Reads one state."""
    control, where, body = *data[:2].ljust(2, b"\0"), data[2:]
    cut = len(body) * where // 256 if where else len(body)
    base = payload(body[cut:], control, BASE) if where else b""
    found = Snapshot(2, payload(body[:cut], control, TABLE), base, "")
    for changes_base in (True, False):
        try:
            state = snapshot.read(found, TABLE, changes_base=changes_base)
        except PayloadError:
            continue
        assert {name: tuple(tensor.shape) for name, tensor in state.tensors.items()} == TABLE.shapes
        assert state.base_delta.keys() <= BASE.shapes.keys()
        assert changes_base or not state.base_delta
        for tensors in (state.tensors, state.base_delta):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def seeds() -> Iterable[tuple[str, bytes]]:
    """States with and without a changed base."""
    for method in ("fedavg", "flora"):
        federation = Federation(build(method)).rounds(2)
        found = federation.server.snapshot()
        first, second = found.payload[40:-16], found.base[40:-16]
        control = found.payload[7] << 1 | found.payload[8] << 3
        where = 256 * len(first) // (len(first) + len(second)) if second else 0
        yield method, bytes([control, where]) + first + second


if __name__ == "__main__":
    harness.run("snapshot", one_input, seeds)

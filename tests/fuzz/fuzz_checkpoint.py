"""Fuzzing of what runs and clients continue from: whatever the file holds, it is a checkpoint or a RunFolderError says
why not.

An input's first byte says how it is read. 0: as the file itself. Else: notes in JSON, a zero byte, and the bytes of
one tensor, whose place the first byte chooses; a file with a right checksum is made of it, as somebody would who means
harm and knows how. What is read must come back from what it is written as.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import atheris
import harness

with atheris.instrument_imports(include=["fedsrd.federation.checkpoint", "fedsrd.runs.records"]):
    import torch
    from safetensors.torch import save
    from toy import Federation, build

    from fedsrd.errors import FedSRDError, RunFolderError
    from fedsrd.federation import checkpoint
    from fedsrd.federation.checkpoint import Checkpoint
    from fedsrd.files import plain
    from fedsrd.runs.records import parse_rounds

FILE = Path(tempfile.mkdtemp(prefix="fedsrd-fuzz-", dir="/dev/shm")) / "state"


def genuine(method: str = "scaffold") -> Checkpoint:
    """What a run of two rounds leaves."""
    federation = Federation(build(method)).rounds(2)
    ledger = federation.server.ledger
    return Checkpoint(
        federation.server.state,
        federation.server.memory,
        {client.name: client.memory.kept for client in federation.clients},
        ledger.contents(),
        ledger.known,
        ledger.counted,
        "0" * 16,
        "a" * 64,
        '{"round": 0, "digest": "a"}\n',
    )


GENUINE = genuine()


def one_input(data: bytes) -> None:
    """Reads one file."""
    how, rest = data[:1] or b"\0", data[1:]
    if how == b"\0":
        FILE.write_bytes(rest)
    else:
        notes, _, content = rest.partition(b"\0")
        text = notes.decode("utf-8", "replace")
        tensors = dict(GENUINE.tensors())
        place = sorted(tensors)[how[0] % len(tensors)]
        if content:
            tensors[place] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        tensors = plain(tensors)
        sealed = {"format": str(checkpoint.FORMAT), "checksum": checkpoint._checksum(text, tensors), "notes": text}
        FILE.write_bytes(save(tensors, metadata=sealed))
    try:
        found = Checkpoint.load(FILE, "")
    except RunFolderError:
        return
    with contextlib.suppress(FedSRDError):
        parse_rounds(found.records, "rounds")
    FILE.write_bytes(found.to_bytes())
    again = Checkpoint.load(FILE, "")
    assert again.notes() == found.notes()
    assert again.records == found.records


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """A field of the notes changed, or any byte."""
    how, (notes, zero, content) = data[:1], data[1:].partition(b"\0")
    if seed % 3 and how != b"\0":
        try:
            changed = json.dumps(harness.mutated(json.loads(notes), seed)).encode()
            return (how + changed + zero + content)[:size]
        except ValueError:
            pass
    return bytes(atheris.Mutate(data, size))


def seeds() -> Iterable[tuple[str, bytes]]:
    """A whole file, and its notes alone."""
    yield "file", b"\0" + genuine("fedavg").to_bytes()
    yield "notes", b"\1" + GENUINE.notes().encode() + b"\0"
    yield "records", b"\3" + GENUINE.notes().encode() + b'\0{"round": 0}\n'


if __name__ == "__main__":
    harness.run("checkpoint", one_input, seeds, mutate)

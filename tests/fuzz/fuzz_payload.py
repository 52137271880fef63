"""Coverage-guided fuzzing of the reader of payloads, with atheris: `make fuzz`.

An input is what stands between the fields that no mutation would get past: two bytes for kind, position codec and
value type, two for the block, then the body. Header, digest and checksum are put around it, so that every input
reaches the checks behind them; the input as it stands is read too. Whatever it is, the reader must give a delta that
fits the table, or raise PayloadError.
"""

import hashlib
import struct
import warnings
from collections.abc import Iterable

import atheris
import harness
import torch

with atheris.instrument_imports(include=["fedsrd.wire"]):
    from fedsrd.core.lora import LoraModule, table_of
    from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
    from fedsrd.errors import PayloadError
    from fedsrd.wire import Kind, WireOptions, decode_delta, encode_delta

LORA = table_of([LoraModule("q", 24, 40, 4), LoraModule("v", 8, 40, 4), LoraModule("w", 1, 1, 1)])
PLAIN = (TensorSpec("kernel", (3, 4, 5)), TensorSpec("scale", (30,)), TensorSpec("gate", ()), TensorSpec("bias", (70,)))
TABLE = TensorTable((*LORA.specs, *PLAIN))
SHAPES = TABLE.shapes

warnings.simplefilter("error")  # a warning from a hostile payload is a finding too


def payload(data: bytes) -> bytes:
    """The input with a header and a checksum around it."""
    control, body = data[:4].ljust(4, b"\0"), data[4:]
    kind, codec, type_ = control[0] & 3, control[0] >> 2 & 3, control[1] & 15
    block = struct.unpack("<H", control[2:])[0]
    head = struct.pack("<4sBBBBB3sIII16s", b"FSRD", 4, kind, 0, codec, type_, bytes(3), block, 7, 6, TABLE.digest)
    return head + body + hashlib.blake2b(head + body, digest_size=16).digest()


def check(data: bytes) -> None:
    """Reads one payload, and checks what comes out."""
    try:
        _, delta = decode_delta(data, TABLE)
    except PayloadError:
        return
    for name, tensor in delta.items():
        assert tensor.shape == SHAPES[name]
        assert 0 < tensor.count <= tensor.elements
        assert bool(torch.isfinite(tensor.values).all())
        if tensor.positions is None:
            assert tensor.count == tensor.elements
        else:
            assert len(tensor.positions) == tensor.count
            assert int(tensor.positions[0]) >= 0
            assert int(tensor.positions[-1]) < tensor.elements
            assert bool((tensor.positions.diff() > 0).all())


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    check(data)
    check(payload(data))


def seeds() -> Iterable[tuple[str, bytes]]:
    """One input for every codec and type, with tensors that travel in every way."""
    generator = torch.Generator().manual_seed(0)
    for values in ("float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"):
        for positions in ("auto", "bitmap", "gaps"):
            delta = {}
            for number, (name, shape) in enumerate(SHAPES.items()):
                tensor = torch.randn(shape, generator=generator)
                if number % 3 == 0:
                    delta[name] = SparseTensor.from_mask(tensor, torch.rand(shape, generator=generator) < 0.1)
                elif number % 3 == 1:
                    delta[name] = SparseTensor.from_draw(tensor, name, Draw(3, 0.2, (number % 2) / 2))
                elif number in (2, 8):
                    delta[name] = SparseTensor.from_dense(tensor)
            options = WireOptions(values=values, positions=positions, block=16)
            made = encode_delta(delta, TABLE, Kind.UPLINK, 7, 6, options)
            kind, _, codec, type_ = made[5:9]
            (block,) = struct.unpack("<I", made[12:16])
            data = bytes([kind | codec << 2, type_]) + struct.pack("<H", block) + made[40:-16]
            assert payload(data) == made
            yield f"{values}-{positions}", data


if __name__ == "__main__":
    harness.run("payload", one_input, seeds)

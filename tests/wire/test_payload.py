"""Payloads: round trips to the bit, golden bytes, and everything that must be refused."""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.factors import ModuleShape, ShapeTable, Slot, SparseTensor
from fedsrd.errors import PayloadError
from fedsrd.wire.inspect import inspect_payload
from fedsrd.wire.payload import Kind, decode_delta, decode_start, encode_delta, encode_start, is_finite, read_header

TABLE = ShapeTable((ModuleShape("q", 3, 5, 2), ModuleShape("v", 1, 1, 1)))
SLOTS = list(TABLE.shapes)
GOLDEN = "46535244010101010700000006000000"  # magic, version, kind, codings, round 7, version 6


def sparse(shape, positions, values):
    return SparseTensor(shape, torch.tensor(positions, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))


SMALL = {
    Slot("q", "B"): sparse((3, 2), [0, 5], [1.0, -0.0]),
    Slot("v", "A"): SparseTensor((1, 1), None, torch.tensor([2.5])),
}


def reseal(payload: bytes) -> bytes:
    """The payload with a checksum that fits, so that the checks behind it are reached."""
    return payload[:-16] + hashlib.blake2b(payload[:-16], digest_size=16).digest()


def payload() -> bytes:
    return encode_delta(SMALL, TABLE, Kind.UPLINK, 7, 6)


@st.composite
def deltas(draw):
    modules = tuple(
        ModuleShape(f"m{i}", draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 3)))
        for i in range(draw(st.integers(0, 3)))
    )
    table = ShapeTable(modules)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    delta = {}
    for slot, shape in table.shapes.items():
        kind = draw(st.sampled_from(["sparse", "dense", "missing"]))
        raw = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)  # every bit pattern: NaN, subnormal, -0
        matrix = torch.from_numpy(raw.copy())
        if kind == "dense":
            delta[slot] = SparseTensor.from_dense(matrix)
        elif kind == "sparse":
            delta[slot] = SparseTensor.from_mask(matrix, torch.from_numpy(rng.random(shape) < density))
    return table, delta


@given(deltas(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_round_trips_are_exact_to_the_bit(drawn, round_number, version):
    table, delta = drawn
    data = encode_delta(delta, table, Kind.DOWNLINK, round_number, version)
    assert data == encode_delta(dict(reversed(list(delta.items()))), table, Kind.DOWNLINK, round_number, version)
    header, found = decode_delta(data, table)
    assert (header.kind, header.round, header.version) == (Kind.DOWNLINK, round_number, version)
    assert set(found) == {slot for slot, tensor in delta.items() if tensor.count}
    size = 32 + 8 * len(table.shapes) + 16
    for slot, tensor in delta.items():
        size += 4 * tensor.count
        size += (tensor.elements + 7) // 8 if tensor.positions is not None and tensor.count else 0
        if tensor.count:
            assert found[slot].dense().numpy().tobytes() == tensor.dense().numpy().tobytes()
    assert len(data) == size


def test_the_bytes_are_frozen():
    expected = (
        bytes.fromhex(GOLDEN)
        + TABLE.digest
        + struct.pack("<4Q", 4, 0, 0, 3)  # two at positions; none; none; all of one element
        + bytes([0b100001])
        + struct.pack("<3f", 1.0, -0.0, 2.5)
    )
    assert payload() == expected + hashlib.blake2b(expected, digest_size=16).digest()
    assert TABLE.digest.hex() == "543a0162b5b3f78a22ff532a6124dcb1"


def test_a_start_is_56_bytes_and_gives_its_seed_back():
    data = encode_start(2**63 + 5, TABLE)
    assert len(data) == 56
    assert decode_start(data, TABLE) == 2**63 + 5
    with pytest.raises(PayloadError, match="expected an uplink or downlink"):
        decode_delta(data, TABLE)
    with pytest.raises(PayloadError, match="expected a start"):
        decode_start(payload(), TABLE)


def test_every_flipped_bit_and_every_truncation_is_refused():
    data = payload()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            decode_delta(bytes(flipped), TABLE)
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            decode_delta(data[:size], TABLE)
    with pytest.raises(PayloadError):
        decode_delta(data + b"\0", TABLE)


def patched(offset: int, content: bytes) -> bytes:
    data = payload()
    return reseal(data[:offset] + content + data[offset + len(content) :])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (patched(0, b"FSRX"), "this is no FedSRD payload"),
        (patched(4, b"\x02"), "format version 2: this reader knows version 1"),
        (patched(5, b"\x09"), "kind 9: this reader knows 0 start, 1 uplink, 2 downlink"),
        (patched(6, b"\x63"), "codings 99 and 1"),
        (patched(7, b"\x63"), "codings 1 and 99"),
        (patched(16, b"\0" * 16), "the sender adapts another model"),
        (patched(32, struct.pack("<Q", 2**64 - 2)), "q B: 9223372036854775807 values for 6 elements"),
        (patched(32, struct.pack("<Q", 14)), "q B: 7 values for 6 elements"),
        (patched(32, struct.pack("<Q", 5)), "q B: 2 values for 6 elements"),
        (patched(32, struct.pack("<Q", 6)), "bitmap has 2 ones where the header counts 3"),
        (patched(64, b"\x81"), "spare bits"),
        (patched(64, b"\x01"), "bitmap has 1 ones"),
        (reseal(payload()[:-16] + b"\0\0\0\0" + payload()[-16:]), "4 bytes too many"),
        (reseal(payload()[:-18] + payload()[-16:]), "truncated"),
        (reseal(payload()[:40] + payload()[-16:]), "truncated"),
        (b"", "0 bytes: a payload has at least 48"),
    ],
)
def test_hostile_payloads_say_what_is_wrong(data, message):
    with pytest.raises(PayloadError, match=message):
        decode_delta(data, TABLE)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 76), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_mutation_behind_a_good_checksum_is_refused_or_harmless(changes):
    data = bytearray(payload())
    for offset, value in changes:
        data[offset] = value
    try:
        _, delta = decode_delta(reseal(bytes(data)), TABLE)
    except PayloadError:
        return
    for slot, tensor in delta.items():
        assert tensor.dense().shape == TABLE.shapes[slot]


def test_encoding_refuses_what_the_table_lacks():
    with pytest.raises(ValueError, match="the shape table says nothing"):
        encode_delta({Slot("x", "B"): sparse((3, 2), [], [])}, TABLE, Kind.UPLINK, 1, 0)
    with pytest.raises(ValueError, match=r"the shape table says \(3, 2\)"):
        encode_delta({Slot("q", "B"): sparse((2, 3), [], [])}, TABLE, Kind.UPLINK, 1, 0)


def test_encoding_refuses_what_could_not_be_read_back():
    for positions in ([1, 0], [2, 2]):
        with pytest.raises(ValueError, match="strictly increasing"):
            encode_delta({Slot("q", "B"): sparse((3, 2), positions, [1.0, 2.0])}, TABLE, Kind.UPLINK, 1, 0)
    with pytest.raises(ValueError, match="use encode_start"):
        encode_delta({}, TABLE, Kind.START, 1, 0)


def test_finiteness():
    assert is_finite(SMALL)
    assert not is_finite({Slot("q", "B"): sparse((3, 2), [1], [float("inf")])})
    assert not is_finite({Slot("q", "B"): sparse((3, 2), [1], [float("nan")])})


def test_inspection_counts_what_is_there():
    found = inspect_payload(payload(), TABLE)
    assert json.loads(json.dumps(found)) == found
    assert (found["kind"], found["round"], found["applies_to_version"]) == ("uplink", 7, 6)
    assert (found["positions"], found["values"]) == ("bitmap", "float32")
    assert found["elements"] == 3
    assert found["density"] == pytest.approx(3 / 7)
    assert found["slots"] == {"q.B": pytest.approx(2 / 6), "v.A": 1.0}
    assert "elements" not in inspect_payload(payload())
    assert inspect_payload(encode_start(9, TABLE), TABLE)["seed"] == 9
    assert read_header(payload()).version == 6

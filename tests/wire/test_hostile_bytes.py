"""Payloads from a sender that means harm, or a disk that failed: refused with PayloadError, or read within the table.

`tests/attacks/` has the known abuses one by one; `make fuzz` looks for unknown ones at length.
"""

import hashlib
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.errors import PayloadError
from fedsrd.wire import Kind, WireOptions, decode_delta, decode_start, encode_delta, encode_start, read_header
from fedsrd.wire.inspect import inspect_payload

TABLE = table_of([LoraModule("q", 12, 20, 4), LoraModule("v", 3, 20, 4), LoraModule("w", 1, 1, 1)])
MIXED = TensorTable(
    (
        *TABLE.specs,
        TensorSpec("kernel", (3, 4, 5)),
        TensorSpec("scale", (40,)),
        TensorSpec("gate", ()),
        TensorSpec("bias", (30,)),
    )
)


def seal(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=16).digest()


def example(options=None, table=TABLE) -> bytes:
    delta = {}
    generator = torch.Generator().manual_seed(1)
    for number, (name, shape) in enumerate(table.shapes.items()):
        tensor = torch.randn(shape, generator=generator)
        if number % 3 == 0:
            delta[name] = SparseTensor.from_mask(tensor, torch.rand(shape, generator=generator) < 0.3)
        elif number % 3 == 1:
            delta[name] = SparseTensor.from_draw(tensor, name, Draw(2, 0.4, number % 2 / 2))
        else:
            delta[name] = SparseTensor.from_dense(tensor)
    return encode_delta(delta, table, Kind.UPLINK, 3, 2, options)


EXAMPLES = [
    (example(WireOptions(values=values, positions=positions, block=9), table), table)
    for table in (TABLE, MIXED)
    for values, positions in (
        ("float32", "bitmap"),
        ("bfloat16", "gaps"),
        ("int8", "auto"),
        ("int2", "auto"),
        ("int4", "gaps"),
    )
]


def valid_or_refused(data: bytes, table=TABLE) -> None:
    """Only PayloadError, or a delta whose every tensor fits the table."""
    try:
        header, delta = decode_delta(data, table)
    except PayloadError:
        with pytest.raises(PayloadError):
            inspect_payload(data, table)
        return
    assert header.kind in (Kind.UPLINK, Kind.DOWNLINK, Kind.SNAPSHOT)
    for name, sparse in delta.items():
        assert sparse.shape == table.shapes[name]
        assert sparse.values.dtype == torch.float32
        assert bool(torch.isfinite(sparse.values).all())
        assert 0 < sparse.count <= sparse.elements
        if sparse.positions is None:
            assert sparse.count == sparse.elements
        else:
            assert sparse.positions.dtype == torch.int64
            assert len(sparse.positions) == sparse.count
            assert bool((sparse.positions.diff() > 0).all())
            assert int(sparse.positions[0]) >= 0
            assert int(sparse.positions[-1]) < sparse.elements
    # What was read can be written again, and reads alike.
    again = decode_delta(encode_delta(delta, table, header.kind, header.round, header.version), table)[1]
    for name, sparse in delta.items():
        found = again[name].dense() if name in again else torch.zeros(sparse.shape)
        assert torch.equal(found, sparse.dense())
    inspect_payload(data, table)


changes = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 2000), st.integers(0, 255)),
        st.tuples(st.just("bit"), st.integers(0, 2000), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 2000), st.integers(1, 9)),
        st.tuples(st.just("insert"), st.integers(0, 2000), st.binary(min_size=1, max_size=9)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(EXAMPLES), changes)
def test_any_change_behind_a_good_checksum_is_refused_or_harmless(example, mutations):
    payload, table = example
    data = bytearray(payload[:-16])
    for kind, where, what in mutations:
        offset = where % (len(data) + 1)
        if kind == "insert":
            data[offset:offset] = what
        elif kind == "cut":
            del data[offset : offset + what]
        elif offset < len(data):
            data[offset] = what if kind == "byte" else data[offset] ^ 1 << what
    valid_or_refused(seal(bytes(data)), table)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(EXAMPLES), st.binary(max_size=200))
def test_any_body_behind_a_good_header_is_refused_or_harmless(example, body):
    payload, table = example
    valid_or_refused(seal(payload[:40] + body), table)


@pytest.mark.parametrize(("payload", "table"), EXAMPLES)
def test_every_truncation_behind_a_good_checksum_is_refused(payload, table):
    data = payload[:-16]
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            decode_delta(seal(data[:size]), table)
    for extra in range(1, 20):
        with pytest.raises(PayloadError, match=f"{extra} bytes too many"):
            decode_delta(seal(data + b"\0" * extra), table)


@pytest.mark.parametrize(("payload", "table"), EXAMPLES)
def test_the_unchanged_payload_is_taken(payload, table):
    valid_or_refused(payload, table)
    assert len(decode_delta(payload, table)[1]) == len(table.specs)


@given(st.binary(max_size=120))
def test_noise_is_refused(noise):
    for read in (read_header, lambda d: decode_delta(d, TABLE), lambda d: decode_start(d, TABLE)):
        with pytest.raises(PayloadError):
            read(noise)


def test_a_damaged_start_is_refused():
    data = encode_start(2**64 - 1, TABLE)
    assert decode_start(data, TABLE) == 2**64 - 1
    assert decode_start(encode_start(0, TABLE), TABLE) == 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            decode_start(bytes(flipped), TABLE)
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            decode_start(data[:size], TABLE)
        with pytest.raises(PayloadError):
            read_header(data[:size])
    with pytest.raises(PayloadError, match="seed at byte 40: needs 8 bytes, 7 are left"):
        decode_start(seal(data[:-17]), TABLE)
    with pytest.raises(PayloadError, match="1 bytes too many"):
        decode_start(seal(data[:-16] + b"\0"), TABLE)
    for offset in (7, 8, 12, 16, 20):
        with pytest.raises(PayloadError, match="expected a start"):
            decode_start(seal(data[:offset] + b"\1" + data[offset + 1 : -16]), TABLE)
    with pytest.raises(PayloadError, match="adapts another model"):
        decode_start(data, TensorTable(TABLE.specs[:2]))


@pytest.mark.parametrize("options", [WireOptions(), WireOptions(values="int4"), WireOptions(positions="bitmap")])
def test_a_short_payload_costs_no_more_than_the_table(options):
    """A refusal, whatever a mutated payload claims, stays within a few times the adapter's own float32 bytes."""
    table = table_of([LoraModule("big", 3000, 2000, 8)])
    whole = example(options, table)
    for size in (60, 100, len(whole) // 2):
        for value in (0, 0x7F, 0xFF):
            data = seal(bytearray(whole[:size]) + bytes([value]) * 64)
            tracemalloc.start()
            with pytest.raises(PayloadError):
                decode_delta(data, table)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 6 * 4 * table.elements

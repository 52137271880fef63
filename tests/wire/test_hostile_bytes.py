"""Payloads from a sender that means harm, or a disk that failed: refused with PayloadError, at no cost in memory."""

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.factors import ModuleShape, ShapeTable, Slot, SparseTensor
from fedsrd.errors import PayloadError
from fedsrd.wire import positions, values
from fedsrd.wire.inspect import inspect_payload
from fedsrd.wire.payload import Kind, decode_delta, decode_start, encode_delta, encode_start, read_header

TABLE = ShapeTable((ModuleShape("q", 3, 5, 2), ModuleShape("v", 2, 9, 1)))
COUNTS_END = 32 + 8 * len(TABLE.shapes)
WORDS = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]


def seal(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=16).digest()


def example(table=TABLE) -> bytes:
    delta = {}
    for i, (slot, shape) in enumerate(table.shapes.items()):
        matrix = torch.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape)
        if i == 1:
            delta[slot] = SparseTensor.from_dense(matrix)
        elif i != 2:
            delta[slot] = SparseTensor.from_mask(matrix, matrix % 3 == 1)
    return encode_delta(delta, table, Kind.UPLINK, 3, 2)


def valid_or_refused(data: bytes, table=TABLE) -> None:
    """Only PayloadError, or a delta whose every tensor fits the table."""
    try:
        header, delta = decode_delta(data, table)
    except PayloadError:
        return
    assert header.kind in (Kind.UPLINK, Kind.DOWNLINK)
    for slot, sparse in delta.items():
        assert sparse.shape == table.shapes[slot]
        assert sparse.values.dtype == torch.float32
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
    assert set(again) == set(delta)
    for slot, sparse in delta.items():
        assert again[slot].dense().numpy().tobytes() == sparse.dense().numpy().tobytes()


def test_whole_payloads_are_frozen():
    table = ShapeTable((ModuleShape("m", 2, 3, 1),))
    delta = {
        Slot("m", "B"): SparseTensor.from_dense(torch.tensor([[1.5], [-0.0]])),
        Slot("m", "A"): SparseTensor((1, 3), torch.tensor([0, 2]), torch.tensor([1e-45, -2.0])),
    }
    assert encode_delta(delta, table, Kind.DOWNLINK, 258, 257).hex() == FROZEN_DELTA
    assert encode_start(0x0102030405060708, table).hex() == FROZEN_START
    found = decode_delta(bytes.fromhex(FROZEN_DELTA), table)[1]
    assert found[Slot("m", "A")].values.view(torch.int32).tolist() == [1, -0x40000000]
    assert found[Slot("m", "B")].values.view(torch.int32).tolist() == [0x3FC00000, -0x80000000]


FROZEN_DELTA = (
    "465352440102010102010000010100001ccadd5797cfe20770169c69c117c92d05000000000000000400000000000000"
    "050000c03f0000008001000000000000c0fe2ab1b3415027e10d89dca937a419c4"
)
FROZEN_START = (
    "465352440100000000000000000000001ccadd5797cfe20770169c69c117c92d0807060504030201d8cc7fdfaf735d8f314f9ec965922de5"
)


def test_a_dense_delta_of_nothing_and_of_everything():
    empty = encode_delta({}, TABLE, Kind.UPLINK, 0, 0)
    assert len(empty) == COUNTS_END + 16
    assert decode_delta(empty, TABLE)[1] == {}
    nothing = ShapeTable(())
    assert decode_delta(encode_delta({}, nothing, Kind.UPLINK, 1, 0), nothing)[1] == {}
    whole = {slot: SparseTensor.from_dense(torch.ones(shape)) for slot, shape in TABLE.shapes.items()}
    assert len(encode_delta(whole, TABLE, Kind.UPLINK, 1, 0)) == COUNTS_END + 4 * TABLE.elements + 16


def test_what_is_read_can_be_written_to_and_is_its_own():
    data = example()
    for given_as in (data, bytearray(data), memoryview(data)):
        _, delta = decode_delta(given_as, TABLE)
        for sparse in delta.values():
            sparse.values.add_(1)
    assert data == example()


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
    for body in (data[32:-17], data[32:-16] + b"\0"):
        with pytest.raises(PayloadError, match="expected a start of 8"):
            decode_start(seal(data[:32] + body), TABLE)
    with pytest.raises(PayloadError, match="adapts another model"):
        decode_start(data, ShapeTable(TABLE.modules[:1]))


@pytest.mark.parametrize("kind", range(3, 256, 36))
def test_no_kind_but_the_known_ones(kind):
    data = example()
    for read in (read_header, inspect_payload, lambda d: decode_delta(d, TABLE), lambda d: decode_start(d, TABLE)):
        with pytest.raises(PayloadError, match=f"kind {kind}: this reader knows"):
            read(seal(data[:5] + bytes([kind]) + data[6:-16]))


def test_codings_that_a_reader_does_not_know_still_show_their_header():
    data = example()
    odd = seal(data[:6] + b"\x07\x08" + data[8:-16])
    assert (read_header(odd).positions, read_header(odd).values) == (7, 8)
    assert inspect_payload(odd)["positions"] == "unknown (7)"
    with pytest.raises(PayloadError, match="codings 7 and 8"):
        inspect_payload(odd, TABLE)


@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("word", WORDS)
def test_counts_of_any_size_are_refused(slot, word):
    data = example()
    start = 32 + 8 * slot
    changed = seal(data[:start] + struct.pack("<Q", word) + data[start + 8 : -16])
    if changed == data:
        return
    with pytest.raises(PayloadError):
        decode_delta(changed, TABLE)


def test_every_truncation_behind_a_good_checksum_is_refused():
    data = example()[:-16]
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            decode_delta(seal(data[:size]), TABLE)
    for extra in range(1, 20):
        with pytest.raises(PayloadError, match=f"{extra} bytes too many"):
            decode_delta(seal(data + b"\0" * extra), TABLE)


def test_every_spare_bit_of_a_bitmap_is_refused():
    for elements in range(1, 17):
        good = positions.encode_bitmap(np.array([0]), elements)
        assert positions.decode_bitmap(memoryview(good), elements, 1)[1] == len(good) == (elements + 7) // 8
        for bit in range(elements, 8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] |= 1 << bit % 8
            for count in (1, 2):
                with pytest.raises(PayloadError, match="spare bits"):
                    positions.decode_bitmap(memoryview(bad), elements, count)


def test_a_bitmap_with_more_or_fewer_ones_than_values_is_refused():
    bitmap = memoryview(positions.encode_bitmap(np.array([0, 3, 8]), 9))
    for count in (0, 1, 2, 4, 9, 10):
        with pytest.raises(PayloadError, match=f"bitmap has 3 ones where the header counts {count}"):
            positions.decode_bitmap(bitmap, 9, count)
    # The whole payload fits together but for that: one value, as counted, and two ones in the bitmap.
    table = ShapeTable((ModuleShape("m", 9, 1, 1),))
    data = encode_delta(
        {Slot("m", "B"): SparseTensor((9, 1), torch.tensor([3]), torch.ones(1))}, table, Kind.UPLINK, 1, 0
    )
    assert data[48] == 0b1000
    with pytest.raises(PayloadError, match="bitmap has 2 ones"):
        decode_delta(seal(data[:48] + bytes([0b1001]) + data[49:-16]), table)


def test_the_codings_take_only_what_is_theirs():
    data = memoryview(positions.encode_bitmap(np.array([1, 9]), 10) + b"rest")
    found, used = positions.decode_bitmap(data, 10, 2)
    assert (found.tolist(), bytes(data[used:])) == ([1, 9], b"rest")
    numbers, used = values.decode_float32(memoryview(struct.pack("<2f", 1, 2) + b"rest"), 2)
    assert (numbers.tolist(), used) == ([1, 2], 8)
    with pytest.raises(PayloadError, match="3 float32 values need 12 bytes, 11 are left"):
        values.decode_float32(memoryview(bytes(11)), 3)


body_changes = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 500), st.integers(0, 255)),
        st.tuples(st.just("count"), st.integers(0, 3), st.one_of(st.sampled_from(WORDS), st.integers(0, 40))),
        st.tuples(st.just("cut"), st.integers(0, 500), st.integers(1, 9)),
        st.tuples(st.just("insert"), st.integers(0, 500), st.binary(min_size=1, max_size=9)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=400, deadline=None)
@given(body_changes)
def test_any_change_of_structure_is_refused_or_harmless(changes):
    data = bytearray(example()[:-16])
    for kind, where, what in changes:
        if kind == "count":
            data[32 + 8 * where : 40 + 8 * where] = struct.pack("<Q", what)
            continue
        offset = where % (len(data) + 1)
        if kind == "byte" and offset < len(data):
            data[offset] = what
        elif kind == "cut":
            del data[offset : offset + what]
        elif kind == "insert":
            data[offset:offset] = what
    valid_or_refused(seal(bytes(data)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([1, 2]))
def test_any_body_behind_a_good_header_is_refused_or_harmless(body, kind):
    valid_or_refused(seal(example()[:5] + bytes([kind]) + example()[6:32] + body))


@given(st.binary(max_size=120))
def test_noise_is_refused(noise):
    for read in (read_header, lambda d: decode_delta(d, TABLE), lambda d: decode_start(d, TABLE)):
        with pytest.raises(PayloadError):
            read(noise)


def test_the_unchanged_payload_is_taken():
    valid_or_refused(example())
    assert len(decode_delta(example(), TABLE)[1]) == 3


@pytest.mark.parametrize("claim", [2 * 4_000_000 + 1, 2 * 3_999_999, 2, 2**64 - 1])
def test_a_claim_costs_no_memory(claim):
    """72 bytes that claim a matrix of four million elements."""
    table = ShapeTable((ModuleShape("big", 4_000_000, 1, 1),))
    data = encode_delta({}, table, Kind.UPLINK, 1, 0)
    bad = seal(data[:32] + struct.pack("<2Q", claim, 0) + bytes(8))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            decode_delta(bad, table)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()

"""The envelope, what encoding refuses, and what inspection says. Round trips: test_against_reference.py."""

import hashlib
import json

import pytest
import torch

from fedsrd.core.lora import LoraModule, table_of, tensor_name
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.errors import PayloadError
from fedsrd.wire import (
    Kind,
    Travels,
    WireOptions,
    decode,
    decode_delta,
    decode_start,
    encode_delta,
    encode_start,
    is_finite,
    read_header,
)
from fedsrd.wire.inspect import inspect_payload

TABLE = table_of([LoraModule("q", 3, 5, 2), LoraModule("v", 1, 1, 1)])
Q_B, Q_A, _, V_A = TABLE.shapes


def sparse(shape, positions, values):
    return SparseTensor(shape, torch.tensor(positions, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))


SMALL = {
    Q_B: sparse((3, 2), [0, 5], [1.0, -2.0]),
    V_A: SparseTensor((1, 1), None, torch.tensor([2.5])),
}


def reseal(payload: bytes) -> bytes:
    """The payload with a checksum that fits, so that the checks behind it are reached."""
    return payload[:-16] + hashlib.blake2b(payload[:-16], digest_size=16).digest()


def payload(**options) -> bytes:
    return encode_delta(SMALL, TABLE, Kind.UPLINK, 7, 6, WireOptions(**options))


def test_a_start_is_64_bytes_and_gives_its_seed_back():
    data = encode_start(2**63 + 5, TABLE)
    assert len(data) == 64
    assert decode_start(data, TABLE) == 2**63 + 5
    with pytest.raises(PayloadError, match="expected an uplink or downlink"):
        decode_delta(data, TABLE)
    with pytest.raises(PayloadError, match="uplink of round 7: expected a start"):
        decode_start(payload(), TABLE)


@pytest.mark.parametrize("positions", ["bitmap", "gaps"])
def test_every_flipped_bit_and_every_truncation_is_refused(positions):
    data = payload(positions=positions)
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
    data = payload(positions="bitmap")
    return reseal(data[:offset] + content + data[offset + len(content) :])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (patched(0, b"FSRX"), "this is no FedSRD payload"),
        (patched(4, b"\x01"), "format version 1: this reader knows version 4"),
        (patched(4, b"\x03"), "format version 3: this reader knows version 4"),
        (patched(4, b"\x05"), "format version 5: this reader knows version 4"),
        (patched(5, b"\x09"), "kind 9: this reader knows 0 start, 1 uplink, 2 downlink, 3 snapshot"),
        (patched(6, b"\x01"), "flags 1"),
        (patched(10, b"\x01"), "000100"),
        (patched(7, b"\x63"), "position codec 99: this reader knows 1 bitmap, 2 gaps"),
        (patched(7, b"\x00"), "position codec 0"),
        (patched(8, b"\x63"), "value type 99: this reader knows 1 float32, 2 bfloat16"),
        (patched(8, b"\x05"), "block 0 with int4"),
        (patched(12, b"\x05"), "block 5 with float32"),
        (patched(24, b"\0" * 16), "the sender adapts another model"),
        (patched(40, b"\x00"), "position codec 1 and no listed tensor"),
        (patched(40, b"\x02"), "value type 1, block 0 and no values|bytes too many|bits are set|needs"),
        (patched(41, b"\x41"), "bitmap of q.lora_B.weight: spare bits"),
        (patched(42, b"\x02"), "values: 2 says how they travel"),
        (reseal(payload()[:-16] + b"\0\0\0\0" + payload()[-16:]), "4 bytes too many"),
        (reseal(payload()[:-18] + payload()[-16:]), "values at byte .*: needs .* are left: truncated"),
        (reseal(payload()[:40] + payload()[-16:]), "tensors at byte 40: needs 1 bytes, 0 are left"),
        (b"", "0 bytes: a payload has at least 56"),
    ],
)
def test_hostile_payloads_say_what_is_wrong(data, message):
    with pytest.raises(PayloadError, match=message):
        decode_delta(data, TABLE)


@pytest.mark.parametrize("kind", range(5, 256, 36))
def test_no_kind_but_the_known_ones(kind):
    data = payload()
    for read in (read_header, inspect_payload, lambda d: decode_delta(d, TABLE), lambda d: decode_start(d, TABLE)):
        with pytest.raises(PayloadError, match=f"kind {kind}: this reader knows"):
            read(reseal(data[:5] + bytes([kind]) + data[6:]))


def test_codings_that_a_reader_does_not_know_still_show_their_header():
    data = payload()
    odd = reseal(data[:7] + b"\x07\x08" + data[9:])
    assert (read_header(odd).positions, read_header(odd).values) == (7, 8)
    assert inspect_payload(odd)["positions"] == "unknown (7)"
    with pytest.raises(PayloadError, match="position codec 7"):
        inspect_payload(odd, TABLE)


def test_encoding_refuses_what_the_table_lacks():
    with pytest.raises(ValueError, match="the tensor table says nothing"):
        encode_delta({tensor_name("x", "B"): sparse((3, 2), [], [])}, TABLE, Kind.UPLINK, 1, 0)
    with pytest.raises(ValueError, match=r"the tensor table says \(3, 2\)"):
        encode_delta({Q_B: sparse((2, 3), [], [])}, TABLE, Kind.UPLINK, 1, 0)


def test_encoding_refuses_what_could_not_be_read_back():
    for positions in ([1, 0], [2, 2]):
        with pytest.raises(ValueError, match="strictly increasing"):
            encode_delta({Q_B: sparse((3, 2), positions, [1.0, 2.0])}, TABLE, Kind.UPLINK, 1, 0)
    for positions in ([-1], [6]):
        with pytest.raises(ValueError, match="positions from 0 to 5"):
            encode_delta({Q_B: sparse((3, 2), positions, [1.0])}, TABLE, Kind.UPLINK, 1, 0)
    with pytest.raises(ValueError, match="use encode_start"):
        encode_delta({}, TABLE, Kind.START, 1, 0)
    for values in ("float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"):
        for value in (float("nan"), float("inf"), -float("inf")):
            bad = {Q_B: sparse((3, 2), [1], [value])}
            with pytest.raises(ValueError, match="q.lora_B.weight: a value of .* does not fit"):
                encode_delta(bad, TABLE, Kind.UPLINK, 1, 0, WireOptions(values=values))
            if "float" in values:
                continue
            with pytest.raises(ValueError, match=f"q.lora_B.weight: a value of .* does not fit {values}"):
                encode_delta(bad, TABLE, Kind.UPLINK, 1, 0, WireOptions(values=values, threshold=0.5))
    with pytest.raises(ValueError, match="a value of 7e\\+04 does not fit float16"):
        encode_delta({Q_B: sparse((3, 2), [1], [7e4])}, TABLE, Kind.UPLINK, 1, 0, WireOptions(values="float16"))
    for number in (-1, 2**32):
        with pytest.raises(ValueError, match=r"round .*: expected 0 <= round < 2\*\*32"):
            encode_delta(SMALL, TABLE, Kind.UPLINK, number, 0)
        with pytest.raises(ValueError, match="version"):
            encode_delta(SMALL, TABLE, Kind.UPLINK, 1, number)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            encode_start(seed, TABLE)


def test_what_is_read_can_be_written_to_and_is_its_own():
    for options in (WireOptions(), WireOptions(values="bfloat16", positions="bitmap"), WireOptions(values="int4")):
        data = encode_delta(SMALL, TABLE, Kind.UPLINK, 1, 0, options)
        for given_as in (data, bytearray(data), memoryview(data)):
            _, delta = decode_delta(given_as, TABLE)
            for tensor in delta.values():
                tensor.values.add_(1)
        assert data == encode_delta(SMALL, TABLE, Kind.UPLINK, 1, 0, options)


def test_nothing_travels_in_no_bytes():
    empty = encode_delta({}, TABLE, Kind.UPLINK, 0, 0)
    assert len(empty) == 40 + 1 + 16
    assert decode_delta(empty, TABLE)[1] == {}
    zeros = {Q_B: sparse((3, 2), [1, 2], [0.0, -0.0]), Q_A: sparse((2, 5), [], [])}
    for values in ("float32", "int4"):
        assert encode_delta(zeros, TABLE, Kind.UPLINK, 0, 0, WireOptions(values=values)) == empty
    nothing = TensorTable(())
    assert decode_delta(encode_delta({}, nothing, Kind.UPLINK, 1, 0), nothing)[1] == {}
    hollow = table_of([LoraModule("m", 0, 4, 2)])
    delta = {tensor_name("m", "B"): SparseTensor((0, 2), None, torch.empty(0))}
    assert decode_delta(encode_delta(delta, hollow, Kind.UPLINK, 1, 0), hollow)[1] == {}


@pytest.mark.parametrize("way", [1, 2, 3])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_a_tensor_without_elements_does_not_travel(shape, way):
    table = TensorTable((TensorSpec("p", shape),))
    nothing = encode_delta({"p": SparseTensor(shape, None, torch.empty(0))}, table, Kind.UPLINK, 1, 0)
    assert nothing == encode_delta({}, table, Kind.UPLINK, 1, 0)
    with pytest.raises(PayloadError, match="p: has no elements, and yet something travels"):
        decode_delta(reseal(nothing[:40] + bytes([way]) + nothing[41:]), table)


def test_inspection_of_tensors_that_are_no_factors():
    table = TensorTable((TensorSpec("scale", (5,)), TensorSpec("gate", ()), TensorSpec("kernel", (2, 3, 4))))
    delta = {
        "scale": sparse((5,), [1, 4], [1.0, 2.0]),
        "gate": SparseTensor((), None, torch.tensor([0.5])),
        "kernel": sparse((2, 3, 4), [23], [-1.0]),
    }
    for positions in ("auto", "bitmap", "gaps"):
        data = encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(positions=positions))
        found = inspect_payload(data, table)
        assert found["tensor_table"] == table.digest.hex()
        assert found["tensors_that_travel"] == "3 of 3"
        assert found["density"] == pytest.approx(4 / 30)
        assert found["tensors"]["scale"] == {"travels": "listed", "density": pytest.approx(2 / 5)}
        assert found["tensors"]["gate"] == {"travels": "whole", "density": 1.0}
        assert found["tensors"]["kernel"] == {"travels": "listed", "density": pytest.approx(1 / 24)}


def test_a_drawn_tensor_lists_no_positions():
    table = table_of([LoraModule("m", 64, 64, 8)])
    name, other = table.shapes
    matrix = torch.ones(64, 8)
    drawn = SparseTensor.from_draw(matrix, name, Draw(11, 0.25))
    listed = SparseTensor(drawn.shape, drawn.positions, drawn.values)
    sizes = {}
    for tensor in (drawn, listed):
        data = encode_delta({name: tensor}, table, Kind.DOWNLINK, 1, 0, WireOptions(values="bfloat16"))
        found = decode(data, table)
        assert torch.equal(found.delta[name].dense(), drawn.dense())
        sizes[found.travels[name]] = len(data)
    assert set(sizes) == {Travels.DRAWN, Travels.LISTED}
    assert sizes[Travels.DRAWN] + 30 < sizes[Travels.LISTED]
    # A delta that was read knows its draw, and is written as before.
    again = decode_delta(encode_delta({name: drawn}, table, Kind.DOWNLINK, 1, 0), table)[1]
    assert again[name].draw == Draw(11, 0.25)
    # The paper's format has no draws.
    bitmap = encode_delta({name: drawn}, table, Kind.DOWNLINK, 1, 0, WireOptions(positions="bitmap"))
    assert decode(bitmap, table).travels[name] is Travels.LISTED
    for draw, size in ((Draw(11, 0.25), 0), (Draw(11, 1 / 3, 1 / 3), 18), (Draw(12, 0.25), 18)):
        both = {name: drawn, other: SparseTensor.from_draw(torch.ones(8, 64), other, draw)}
        data = encode_delta(both, table, Kind.DOWNLINK, 1, 0)
        found = decode(data, table)
        assert found.travels == {name: Travels.DRAWN, other: Travels.DRAWN}
        assert inspect_payload(data, table)["sections"]["draws"]["bytes"] == 17 + size
        assert torch.equal(found.delta[other].dense(), both[other].dense())


def test_draws_that_divide_a_tensor_travel_apart_and_come_together():
    """A cycle of P payloads brings every element once, zeros too."""
    table = table_of([LoraModule("m", 64, 64, 8)])
    whole = {name: torch.randn(shape).floor() for name, shape in table.shapes.items()}
    for parts in (2, 3, 7):
        seen = {name: torch.zeros(shape) for name, shape in table.shapes.items()}
        total = {name: torch.zeros(shape) for name, shape in table.shapes.items()}
        for part in range(parts):
            draw = Draw(5, 1 / parts, part / parts)
            delta = {name: SparseTensor.from_draw(tensor, name, draw) for name, tensor in whole.items()}
            found = decode(encode_delta(delta, table, Kind.UPLINK, 1, 0), table)
            assert set(found.travels.values()) == {Travels.DRAWN}
            for name, sparse in found.delta.items():
                total[name] += sparse.dense()
                seen[name].view(-1)[sparse.positions] += 1
        for name, tensor in whole.items():
            assert torch.equal(total[name], tensor)
            assert bool((seen[name] == 1).all())


def test_draws_beyond_those_that_a_byte_numbers_are_listed():
    table = TensorTable(tuple(TensorSpec(f"p{i}", (40,)) for i in range(260)))
    delta = {
        spec.name: SparseTensor.from_draw(torch.ones(40), spec.name, Draw(i, 0.5)) for i, spec in enumerate(table.specs)
    }
    delta["p259"] = SparseTensor.from_draw(torch.ones(40), "p259", Draw(3, 0.5))
    data = encode_delta(delta, table, Kind.UPLINK, 1, 0)
    found = decode(data, table)
    ways = [how.name for how in found.travels.values()]
    assert ways == ["DRAWN"] * 255 + ["LISTED"] * 4 + ["DRAWN"]
    assert inspect_payload(data, table)["sections"]["draws"]["bytes"] == 1 + 255 * 16 + 256
    for name, sparse in delta.items():
        assert torch.equal(found.delta[name].dense(), sparse.dense())


def test_a_threshold_is_for_integers():
    for values in ("float32", "bfloat16", "float16"):
        with pytest.raises(ValueError, match=f"threshold 0.5 with values {values}: floats have no levels"):
            WireOptions(values=values, threshold=0.5)
    for threshold in (0.0, -1.0, 16.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold"):
            WireOptions(values="int4", threshold=threshold)


@pytest.mark.parametrize("values", ["int8", "int4", "int3", "int2", "ternary"])
def test_with_a_threshold_nothing_is_random(values, monkeypatch):
    table = table_of([LoraModule("m", 40, 40, 2)])
    delta = {name: SparseTensor.from_dense(torch.randn(shape)) for name, shape in table.shapes.items()}
    monkeypatch.setattr("fedsrd.rng.fraction", None)
    options = WireOptions(values=values, threshold=0.7)
    assert len({encode_delta(delta, table, Kind.UPLINK, 1, 0, options, seed) for seed in (1, 2)}) == 1


def test_auto_takes_the_smallest():
    table = table_of([LoraModule("m", 512, 512, 8)])
    generator = torch.Generator().manual_seed(0)
    for density in (0.001, 0.05, 0.3, 0.5, 0.9):
        delta = {
            name: SparseTensor.from_mask(torch.ones(shape), torch.rand(shape, generator=generator) < density)
            for name, shape in table.shapes.items()
        }
        sizes = {
            positions: len(encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(positions=positions)))
            for positions in ("auto", "gaps", "bitmap")
        }
        assert sizes["auto"] == min(sizes.values()), (density, sizes)


def test_finiteness():
    assert is_finite(SMALL)
    assert not is_finite({Q_B: sparse((3, 2), [1], [float("inf")])})
    assert not is_finite({Q_B: sparse((3, 2), [1], [float("nan")])})


def test_inspection_counts_what_is_there():
    data = payload(positions="bitmap")
    found = inspect_payload(data, TABLE)
    assert json.loads(json.dumps(found)) == found
    assert (found["kind"], found["round"], found["applies_to_version"]) == ("uplink", 7, 6)
    assert (found["positions"], found["values"], found["checksum"]) == ("bitmap", "float32", "ok")
    assert found["values_that_travel"] == 3
    assert found["density"] == pytest.approx(3 / 7)
    assert found["tensors"][Q_B] == {"travels": "listed", "density": pytest.approx(2 / 6)}
    assert found["tensors"][V_A] == {"travels": "whole", "density": 1.0}
    assert found["travelling"] == {"listed": 1, "whole": 1}
    # 2 of 6: 6 H(1/3) bits.
    assert found["bernoulli_bytes"] == pytest.approx(5.51 / 8, abs=0.001)
    assert found["sections"]["positions"]["bytes"] == 1
    assert 40 + 1 + sum(section["bytes"] for section in found["sections"].values()) + 16 == len(data)
    assert "values_that_travel" not in inspect_payload(payload())
    assert inspect_payload(encode_start(9, TABLE), TABLE)["seed"] == 9
    assert read_header(payload()).version == 6

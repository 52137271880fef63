"""Payloads are held against a second reader, written from the specification, and against frozen files."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd import rng
from fedsrd.core.lora import LoraModule, table_of, tensor_name
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.errors import PayloadError
from fedsrd.federation.snapshot import base_table
from fedsrd.wire import (
    Kind,
    Travels,
    WireOptions,
    decode,
    decode_delta,
    decode_sum,
    encode_delta,
    encode_start,
    encode_sum,
    positions,
    quantise,
    read_header,
    symbols,
)
from fedsrd.wire.inspect import inspect_payload

GOLDEN = Path(__file__).parent / "golden"
TYPES = ("float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary")
POSITIONS = ("auto", "bitmap", "gaps")
DRAWS = st.sampled_from(
    [Draw(0, 0.3), Draw(2**64 - 1, 0.3), *(Draw(0, 1 / 3, i / 3) for i in range(3)), Draw(1, 1.0), Draw(1, 0.1, 0.9)]
)


@st.composite
def tables(draw):
    """LoRA modules among scalars, vectors, matrices and tensors of three dimensions, in any order."""
    specs = []
    for i in range(draw(st.integers(0, 3))):
        out, inn, rank = draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 5))
        specs += table_of([LoraModule(f"m.{i}.é", out, inn, rank)]).specs
    for i in range(draw(st.integers(0, 4))):
        sides = draw(st.sampled_from([(), (1,), (300,), (30, 9), (1, 40), (5, 7, 6), (3, 1, 30)]))
        shape = tuple(draw(st.integers(1, side)) for side in sides)
        specs.append(TensorSpec(f"p.{i}.é", shape, draw(st.sampled_from(["plain", "plain", "lora_A", "lora_B"]))))
    return TensorTable(tuple(draw(st.permutations(specs))))


@st.composite
def deltas(draw, table):
    """A delta with every way of travelling and ugly values."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.0, 0.003, 0.05, 0.5, 0.97, 1.0]))
    scale = draw(st.sampled_from([1e-30, 1e-4, 1.0, 3e3]))
    delta = {}
    for name, shape, role in table.specs:
        tensor = torch.from_numpy(np.asarray(random.standard_normal(shape) * scale, dtype=np.float32))
        ugly = draw(st.sampled_from([0.0, -0.0, 1e-45, scale]))
        tensor[torch.from_numpy(np.asarray(random.random(shape) < 0.1))] = ugly
        way = draw(st.sampled_from(["missing", "dense", "sparse", "sparse", "drawn"]))
        if way == "dense":
            delta[name] = SparseTensor.from_dense(tensor)
        elif way == "sparse":
            # Components of very different density, so that classes matter.
            bias = random.random(shape[-1:] if role == "lora_B" else (*shape[:-1], 1)[: len(shape)]) * 2
            delta[name] = SparseTensor.from_mask(
                tensor, torch.from_numpy(np.asarray(random.random(shape) < density * bias))
            )
        elif way == "drawn":
            delta[name] = SparseTensor.from_draw(tensor, name, draw(DRAWS))
    return delta


@st.composite
def cases(draw):
    """A table, a delta and how it is written."""
    table = draw(tables())
    values = draw(st.sampled_from(TYPES))
    options = WireOptions(
        values=values,
        threshold=None if "float" in values else draw(st.sampled_from([None, 1e-9, 0.5, 1.0, 16.0])),
        positions=draw(st.sampled_from(POSITIONS)),
        exponents=draw(st.sampled_from(["auto", "raw"])),
        block=draw(st.sampled_from([1, 3, 128])),
    )
    return table, draw(deltas(table)), options


def as_the_reference_has_it(table):
    return [(spec.name, spec.role, spec.shape) for spec in table.specs]


def sealed(body):
    """With a checksum that fits."""
    return body + hashlib.blake2b(body, digest_size=16).digest()


def dense(table, found):
    """What the reference read, tensor by tensor."""
    tensors = {}
    for spec in table.specs:
        flat = np.zeros(spec.elements, dtype=np.float32)
        for element, value in found.get(spec.name, {}).items():
            flat[element] = value
        tensors[spec.name] = flat.reshape(spec.shape)
    return tensors


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_both_readers_read_the_same(case, number, seed):
    table, delta, options = case
    payload = encode_delta(delta, table, Kind.UPLINK, number, number, options, seed)
    assert payload == encode_delta(delta, table, Kind.UPLINK, number, number, options, seed)
    header, ours = decode_delta(payload, table)
    assert (header.kind, header.round, header.version) == (Kind.UPLINK, number, number)
    theirs = reference.read(payload, as_the_reference_has_it(table))
    assert [name for name, found in theirs.items() if found] == list(ours)
    for name, tensor in dense(table, theirs).items():
        mine = ours[name].dense().numpy() if name in ours else np.zeros_like(tensor)
        assert mine.tobytes() == tensor.tobytes(), name
    for name, sparse in ours.items():
        assert sparse.values.dtype == torch.float32
        assert sparse.shape == table.shapes[name]
        assert list(theirs[name]) == (
            list(range(sparse.elements)) if sparse.positions is None else sparse.positions.tolist()
        )
        if sparse.positions is not None:
            assert sparse.positions.dtype == torch.int64
            assert bool((sparse.positions.diff() > 0).all())


@settings(max_examples=80, deadline=None)
@given(cases(), st.lists(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]), max_size=3))
def test_both_readers_refuse_a_stream_that_goes_on(case, more):
    """Of the last word some bits are free; every word more than that is refused, whatever it says."""
    table, delta, options = case
    plain = encode_delta(delta, table, Kind.UPLINK, 1, 0, options)

    class Longer(symbols.Encoder):
        def bytes(self):
            stream = np.frombuffer(super().bytes(), dtype="<u4")
            return np.array([len(stream) - 1 + len(more), *stream[1:], *more], dtype="<u4").tobytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbols, "Encoder", Longer)
        patch.setattr(positions, "Encoder", Longer)
        payload = encode_delta(delta, table, Kind.UPLINK, 1, 0, options)
    if payload == plain:
        decode_delta(payload, table)
        reference.read(payload, as_the_reference_has_it(table))
        return
    refused = []
    for read in (lambda: decode_delta(payload, table), lambda: reference.read(payload, as_the_reference_has_it(table))):
        try:
            read()
        except (PayloadError, AssertionError) as error:
            refused.append(str(error))
    assert len(refused) in (0, 2), "one reader takes what the other refuses"
    if len(more) > 1:
        assert "the stream goes on after its last symbol" in refused[0]


@pytest.mark.parametrize("kind", [Kind.UPLINK, Kind.SNAPSHOT])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_a_snapshot_is_whole_and_float32(kind, case):
    """A writer makes no other, and both readers refuse another; an update may be all of these."""
    table, delta, options = case
    payload = encode_delta(delta, table, Kind.UPLINK, 1, 0, options)
    ways = set(decode(payload, table).travels.values())
    if kind is Kind.SNAPSHOT:
        payload = sealed(payload[:5] + bytes([kind]) + payload[6:-16])
    if kind is Kind.UPLINK or not delta or (options.values == "float32" and ways <= {Travels.NOT, Travels.WHOLE}):
        decode_delta(payload, table)
        reference.read(payload, as_the_reference_has_it(table))
        encode_delta(delta, table, kind, 1, 0, options)
    elif ways != {Travels.NOT}:
        with pytest.raises(PayloadError, match="a snapshot: expected whole tensors, as float32"):
            decode_delta(payload, table)
        with pytest.raises(AssertionError):
            reference.read(payload, as_the_reference_has_it(table))
        with pytest.raises(ValueError, match="kind SNAPSHOT: expected whole tensors, as float32"):
            encode_delta(delta, table, kind, 1, 0, options)


def test_both_readers_refuse_a_list_without_elements():
    """`fedsrd inspect` divides by what travels."""
    table = TensorTable((TensorSpec("q", (3, 2)), TensorSpec("v", (5,))))
    for way, threshold in ((2, b""), (3, struct.pack("<BQII", 1, 5, 0, 0))):
        for others, values in ((0, b""), (1 << 2, b"\0" + struct.pack("<5f", *range(5)))):
            listed = b"\0" if way == 2 else b""
            body = bytes([way + others]) + threshold + listed + (values or b"\0")
            head = struct.pack("<4sBBBBB3sIII16s", b"FSRD", 4, 1, 0, int(way == 2), 1, bytes(3), 0, 1, 0, table.digest)
            payload = sealed(head + body)
            for read in (decode_delta, inspect_payload):
                with pytest.raises(PayloadError, match="q: something of it travels, and yet no element"):
                    read(payload, table)
            with pytest.raises(AssertionError):
                reference.read(payload, as_the_reference_has_it(table))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_float32_is_exact_whatever_the_positions(case):
    table, delta, options = case
    for coding in POSITIONS:
        exact = options.model_copy(update={"values": "float32", "positions": coding})
        _, found = decode_delta(encode_delta(delta, table, Kind.DOWNLINK, 1, 0, exact), table)
        for name, sparse in delta.items():
            got = found[name].dense() if name in found else torch.zeros(sparse.shape)
            assert torch.equal(got, sparse.dense())  # equal as numbers: a listed -0.0 does not travel


@pytest.mark.parametrize("values", TYPES)
@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=25, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**64 - 1))
def test_the_sender_knows_what_will_arrive(values, positions, case, seed):
    """A quantised delta is what its payload decodes to, bit for bit: methods keep what is lost by it."""
    table, delta, options = case
    options = options.model_copy(update={"values": values, "positions": positions})
    quantised = quantise(delta, table, options, seed)
    payload = quantised.payload(Kind.UPLINK, 3, 2)
    assert payload == encode_delta(delta, table, Kind.UPLINK, 3, 2, options, seed)
    known, (_, arrived) = quantised.delta(), decode_delta(payload, table)
    assert list(known) == list(arrived)
    for name, sparse in arrived.items():
        mine = known[name]
        assert mine.shape == sparse.shape == table.shapes[name]
        assert mine.values.dtype == sparse.values.dtype
        assert mine.values.numpy().tobytes() == sparse.values.numpy().tobytes(), name
        assert (mine.positions is None) == (sparse.positions is None)
        if sparse.positions is not None:
            assert torch.equal(mine.positions, sparse.positions), name
        assert mine.draw == sparse.draw
        if sparse.draw is not None:
            # A payload has 32 bits of each end of its range.
            asked = delta[name].draw
            assert sparse.draw.seed == asked.seed
            assert rng.bounds(sparse.draw.keep, sparse.draw.first) == rng.bounds(asked.keep, asked.first)


@given(tables())
def test_both_readers_have_the_same_table(table):
    assert reference.table_digest(as_the_reference_has_it(table)) == table.digest


def test_the_table_of_the_frozen_weights_is_the_specified_one():
    modules = [LoraModule("a", 6, 4, 2), LoraModule("b", 3, 5, 2)]
    lora = table_of(modules).specs
    # The order is that of the factors B; tensors that are no factors have none.
    mixed = TensorTable((lora[3], TensorSpec("scale", (7,)), lora[0], lora[2], lora[1]))
    assert base_table(mixed).digest == reference.table_digest([("a", "plain", (6, 4)), ("b", "plain", (3, 5))])


GOLDEN_LORA = (LoraModule("layers.0.q_proj", 24, 16, 4), LoraModule("layers.0.v_proj", 8, 16, 4))
GOLDEN_PLAIN = (
    TensorSpec("norm.weight", (40,)),
    TensorSpec("gate", ()),
    TensorSpec("conv.weight", (3, 4, 5)),
    TensorSpec("head.bias", (9,)),
)
GOLDEN_TABLE = TensorTable((*table_of(GOLDEN_LORA).specs, *GOLDEN_PLAIN))
GOLDEN_OPTIONS = [
    *((values, positions, None) for values in TYPES for positions in ("gaps", "bitmap")),
    ("int8", "auto", None),
    ("int3", "auto", 0.7),
]


def golden_delta():
    """Whole numbers and halves made by integer arithmetic, so that no library's random numbers matter.

    The last of the tensors does not travel.
    """
    delta = {}
    for number, spec in enumerate(GOLDEN_TABLE.specs):
        flat = torch.arange(spec.elements)
        tensor = (((flat * 37 + 11 * number) % 101 - 50).float() / 8).reshape(spec.shape)
        if number in (0, 4, 6):
            delta[spec.name] = SparseTensor.from_mask(tensor, ((flat * 13) % 17 < 3 + flat % 4).reshape(spec.shape))
        elif number == 1:
            delta[spec.name] = SparseTensor.from_draw(tensor, spec.name, Draw(2510, 0.25))
        elif number == 3:
            delta[spec.name] = SparseTensor.from_draw(tensor, spec.name, Draw(2510, 1 / 3, 1 / 3))
        elif number in (2, 5):
            delta[spec.name] = SparseTensor.from_dense(tensor)
    return delta


@pytest.mark.parametrize(("values", "positions", "threshold"), GOLDEN_OPTIONS)
def test_golden_payloads(values, positions, threshold):
    """The files hold what version 4 is. If this fails, payloads that are on their way cannot be read any more."""
    file = GOLDEN / f"v4-{values}-{positions}.fsrd"
    options = WireOptions(values=values, positions=positions, threshold=threshold)
    made = encode_delta(golden_delta(), GOLDEN_TABLE, Kind.UPLINK, 7, 6, options, 9)
    assert made == file.read_bytes()
    expected = json.loads((GOLDEN / "v4.json").read_text())[file.name]
    _, found = decode_delta(file.read_bytes(), GOLDEN_TABLE)
    assert {name: sparse.dense().flatten().tolist() for name, sparse in found.items()} == expected
    theirs = reference.read(file.read_bytes(), as_the_reference_has_it(GOLDEN_TABLE))
    assert {name: dense(GOLDEN_TABLE, theirs)[name].flatten().tolist() for name in theirs} == expected


def test_the_golden_start():
    assert encode_start(0x0102030405060708, GOLDEN_TABLE) == (GOLDEN / "v4-start.fsrd").read_bytes()
    assert tensor_name("layers.0.q_proj", "B") in GOLDEN_TABLE.shapes


def packed_words(bits, numbers):
    """As the page says it, in plain Python."""
    fields = 64 // bits
    words = [0] * -(-len(numbers) // fields)
    for place, number in enumerate(numbers):
        words[place % len(words)] |= (number % (1 << bits)) << (place // len(words) * bits)
    return struct.pack(f"<{len(words)}Q", *words)


@given(st.integers(1, 32), st.lists(st.integers(-(1 << 31), 1 << 31), min_size=1, max_size=200))
def test_sums_are_what_the_reference_reads(bits, numbers):
    payload = encode_sum(packed_words(bits, numbers), bits, GOLDEN_TABLE, 7, 6)
    theirs = reference.integers(payload, as_the_reference_has_it(GOLDEN_TABLE), len(numbers))
    assert theirs == [number % (1 << bits) for number in numbers]
    size = len(payload) - 56
    assert bytes(decode_sum(payload, size, bits, GOLDEN_TABLE, 7, 6)) == packed_words(bits, numbers)
    for wrong in ((size + 8, bits, 7, 6), (size - 8, bits, 7, 6), (size, bits % 32 + 1, 7, 6), (size, bits, 8, 6)):
        with pytest.raises(PayloadError):
            decode_sum(payload, wrong[0], wrong[1], GOLDEN_TABLE, wrong[2], wrong[3])
    with pytest.raises(PayloadError, match="a sum payload: expected an uplink or downlink"):
        decode_delta(payload, GOLDEN_TABLE)
    assert inspect_payload(payload, GOLDEN_TABLE)["bits_of_an_integer"] == bits


def test_the_golden_sum():
    numbers = [number % 19 - 9 for number in range(41)]
    made = encode_sum(packed_words(5, numbers), 5, GOLDEN_TABLE, 7, 6)
    assert made == (GOLDEN / "v4-sum.fsrd").read_bytes()
    assert reference.integers(made, as_the_reference_has_it(GOLDEN_TABLE), 41) == [number % 32 for number in numbers]


@pytest.mark.parametrize("old", ["v2-float32-gaps", "v3-float32-gaps", "v3-int8-auto", "v3-start"])
def test_older_versions_are_refused(old):
    """Payloads as these versions wrote them, whole and with a good checksum."""
    payload = (GOLDEN / f"{old}.fsrd").read_bytes()
    message = f"format version {old[1]}: this reader knows version 4; upgrade the older end"
    for read in (read_header, inspect_payload, lambda old: decode_delta(old, GOLDEN_TABLE)):
        with pytest.raises(PayloadError, match=message):
            read(payload)
    with pytest.raises(AssertionError):
        reference.read(payload, as_the_reference_has_it(GOLDEN_TABLE))

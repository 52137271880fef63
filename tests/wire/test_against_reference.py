"""Payloads are held against a second reader, written from the specification, and against frozen files."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.factors import Draw, ModuleShape, ShapeTable, Slot, SparseTensor
from fedsrd.wire import Coding, Kind, decode_delta, encode_delta, encode_start

GOLDEN = Path(__file__).parent / "golden"
TYPES = ("float32", "bfloat16", "float16", "int8", "int4", "ternary")


@st.composite
def cases(draw):
    """A table, a delta with every way of travelling and ugly values, and a coding."""
    table = ShapeTable(
        tuple(
            ModuleShape(f"m.{i}.é", draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 5)))
            for i in range(draw(st.integers(0, 3)))
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.0, 0.003, 0.05, 0.5, 0.97, 1.0]))
    scale = draw(st.sampled_from([1e-30, 1e-4, 1.0, 3e3]))
    delta = {}
    for slot, shape in table.shapes.items():
        matrix = torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32))
        matrix[torch.from_numpy(rng.random(shape) < 0.1)] = draw(st.sampled_from([0.0, -0.0, 1e-45, scale]))
        way = draw(st.sampled_from(["missing", "dense", "sparse", "sparse", "drawn"]))
        if way == "dense":
            delta[slot] = SparseTensor.from_dense(matrix)
        elif way == "sparse":
            # Components of very different density, so that classes matter.
            bias = rng.random(shape[1] if slot.factor == "B" else (shape[0], 1)) * 2
            delta[slot] = SparseTensor.from_mask(matrix, torch.from_numpy(rng.random(shape) < density * bias))
        elif way == "drawn":
            delta[slot] = SparseTensor.from_draw(matrix, slot, Draw(draw(st.sampled_from([0, 2**64 - 1])), 0.3))
    coding = Coding(
        values=draw(st.sampled_from(TYPES)),
        positions=draw(st.sampled_from(["auto", "bitmap", "gaps"])),
        exponents=draw(st.sampled_from(["auto", "raw"])),
        block=draw(st.sampled_from([1, 3, 128])),
    )
    return table, delta, coding


def dense(table, found):
    """What the reference read, slot by slot."""
    matrices = {}
    for slot, (rows, columns) in table.shapes.items():
        flat = np.zeros(rows * columns, dtype=np.float32)
        for element, value in found.get((slot.module, slot.factor), {}).items():
            flat[element] = value
        matrices[slot] = flat.reshape(rows, columns)
    return matrices


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_both_readers_read_the_same(case, number, seed):
    table, delta, coding = case
    payload = encode_delta(delta, table, Kind.UPLINK, number, number, coding, seed)
    assert payload == encode_delta(delta, table, Kind.UPLINK, number, number, coding, seed)
    header, ours = decode_delta(payload, table)
    assert (header.kind, header.round, header.version) == (Kind.UPLINK, number, number)
    theirs = reference.read(payload, [tuple(module) for module in table.modules])
    for slot, matrix in dense(table, theirs).items():
        mine = ours[slot].dense().numpy() if slot in ours else np.zeros_like(matrix)
        assert mine.tobytes() == matrix.tobytes(), slot
    for slot, tensor in ours.items():
        assert tensor.values.dtype == torch.float32
        assert tensor.shape == table.shapes[slot]
        if tensor.positions is not None:
            assert tensor.positions.dtype == torch.int64
            assert bool((tensor.positions.diff() > 0).all())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_float32_is_exact_whatever_the_positions(case):
    table, delta, coding = case
    for positions in ("auto", "bitmap", "gaps"):
        exact = coding.model_copy(update={"values": "float32", "positions": positions})
        _, found = decode_delta(encode_delta(delta, table, Kind.DOWNLINK, 1, 0, exact), table)
        for slot, tensor in delta.items():
            got = found[slot].dense() if slot in found else torch.zeros(tensor.shape)
            assert torch.equal(got, tensor.dense())  # equal as numbers: a listed -0.0 does not travel


GOLDEN_TABLE = ShapeTable((ModuleShape("layers.0.q_proj", 24, 16, 4), ModuleShape("layers.0.v_proj", 8, 16, 4)))
GOLDEN_CODINGS = [(values, positions) for values in TYPES for positions in ("gaps", "bitmap")]


def golden_delta():
    """Whole numbers and halves made by integer arithmetic, so that no library's random numbers matter."""
    delta = {}
    for number, (slot, (rows, columns)) in enumerate(GOLDEN_TABLE.shapes.items()):
        flat = torch.arange(rows * columns)
        matrix = (((flat * 37 + 11 * number) % 101 - 50).float() / 8).reshape(rows, columns)
        if number == 0:
            delta[slot] = SparseTensor.from_mask(matrix, ((flat * 13) % 17 < 3 + flat % 4).reshape(rows, columns))
        elif number == 1:
            delta[slot] = SparseTensor.from_draw(matrix, slot, Draw(2510, 0.25))
        elif number == 2:
            delta[slot] = SparseTensor.from_dense(matrix)
    return delta


@pytest.mark.parametrize(("values", "positions"), [*GOLDEN_CODINGS, ("int8", "auto")])
def test_golden_payloads(values, positions):
    """The files hold what version 2 is. If this fails, payloads that are on their way cannot be read any more."""
    file = GOLDEN / f"v2-{values}-{positions}.fsrd"
    made = encode_delta(golden_delta(), GOLDEN_TABLE, Kind.UPLINK, 7, 6, Coding(values=values, positions=positions), 9)
    assert made == file.read_bytes()
    expected = json.loads((GOLDEN / "v2.json").read_text())[file.name]
    _, found = decode_delta(file.read_bytes(), GOLDEN_TABLE)
    assert {f"{s.module}.{s.factor}": t.dense().flatten().tolist() for s, t in found.items()} == expected


def test_the_golden_start():
    assert encode_start(0x0102030405060708, GOLDEN_TABLE) == (GOLDEN / "v2-start.fsrd").read_bytes()
    assert Slot("layers.0.q_proj", "B") in GOLDEN_TABLE.shapes

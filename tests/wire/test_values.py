"""Number types, held against float64: nearest floats, unbiased integers, scales that hold their block."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsrd.core.lora import LoraModule, table_of, tensor_name
from fedsrd.core.tensors import SparseTensor
from fedsrd.wire import Kind, WireOptions, decode_delta, encode_delta
from fedsrd.wire.reader import Reader
from fedsrd.wire.values import BFLOAT16, TYPES, Float, Integer, Place

finite = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-6e4, 6e4, width=32))
FLOATS = [type_ for type_ in TYPES.values() if isinstance(type_, Float)]
INTEGERS = [type_ for type_ in TYPES.values() if isinstance(type_, Integer)]


def back(type_, values, block=0, uniform=None, place=None):
    place = place or Place(len(values), None, len(values))
    data = type_.pack([type_.quantise(values, place, block, uniform)])
    reader = Reader(memoryview(data))
    (found,) = type_.unpack(reader, [place], block)
    reader.end()
    return found


@pytest.mark.parametrize("type_", FLOATS, ids=lambda type_: type_.name)
@given(values=finite)
def test_floats_are_the_nearest_ones(type_, values):
    expected = torch.from_numpy(values).to(getattr(torch, type_.name)).float().numpy()
    assert back(type_, values).tobytes() == expected.tobytes()


@given(hnp.arrays(np.uint32, 50))
def test_every_finite_bfloat16_survives(bits):
    values = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    values = values[np.isfinite(values)]
    assert back(BFLOAT16, values).tobytes() == values.tobytes()


@pytest.mark.parametrize("type_", FLOATS, ids=lambda type_: type_.name)
def test_float_sections_come_raw_or_coded_whichever_is_smaller(type_):
    rng = np.random.default_rng(0)
    spread = (rng.integers(0, 1 << type_.bits, 4000).astype(f"u{type_.bits // 8}"),)
    narrow = (type_.words(rng.standard_normal(4000).astype(np.float32) * 1e-3),)
    for parts, flag in ((spread, 0), (narrow, 1)):
        data = type_.pack_words(parts)
        assert data[0] == flag
        assert len(data) <= 1 + 4000 * type_.bits // 8
        assert type_.unpack_words(Reader(memoryview(data)), 4000, "x").tobytes() == parts[0].tobytes()


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@given(values=finite, block=st.integers(1, 70), seed=st.integers(0, 99))
def test_integers_lie_next_to_their_value(type_, values, block, seed):
    uniform = np.random.default_rng(seed).random(len(values), dtype=np.float32)
    found = back(type_, values, block, uniform).astype(np.float64)
    for start in range(0, len(values), block):
        part = values[start : start + block].astype(np.float64)
        step = np.abs(part).max() / type_.levels
        # The scale is rounded up to eight bits, and small ones to what bfloat16 has.
        widest = step * (1 + 2.0**-7) + 1e-40
        assert (np.abs(found[start : start + block] - part) <= widest * (1 + 1e-5)).all()
        assert (np.abs(found[start : start + block]) <= widest * type_.levels * (1 + 1e-6)).all()
    assert (found[values == 0] == 0).all()


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
def test_random_rounding_is_right_on_average(type_):
    values = np.linspace(-1, 1, 41, dtype=np.float32)
    total = np.zeros(41)
    draws = 4000
    for seed in range(draws):
        total += back(type_, values, 41, np.random.default_rng(seed).random(41, dtype=np.float32))
    step = 1 / type_.levels
    assert np.abs(total / draws - values).max() < 4 * step / 2 / draws**0.5 + 1e-6


def test_without_random_numbers_integers_are_the_nearest():
    found = back(TYPES[5], np.array([7.0, 0.4, 0.6, -3.4], dtype=np.float32), 4)
    assert found.tolist() == [7.0, 0.0, 1.0, -3.0]


def test_scales_belong_to_places_in_the_matrix():
    """A value that rounds to zero leaves the list and moves no other value under another scale."""
    table = table_of([LoraModule("m", 12, 1, 1)])
    name = tensor_name("m", "B")
    values = torch.tensor([1e-9, 7.0, 1e-9, 0.007, 0.003])
    delta = {name: SparseTensor((12, 1), torch.tensor([0, 1, 4, 8, 11]), values)}
    # Five values of twelve elements, one value a block on average: blocks of two elements.
    _, found = decode_delta(encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(values="int8", block=1)), table)
    assert found[name].positions.tolist()[-2:] == [8, 11]
    assert torch.allclose(found[name].dense().flatten()[[1, 8, 11]], values[[1, 3, 4]], rtol=1e-2)


@pytest.mark.parametrize("values", ["int8", "int4", "ternary"])
def test_rounding_follows_its_seed(values):
    table = table_of([LoraModule("m", 40, 40, 2)])
    matrix = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    delta = {tensor_name("m", "B"): SparseTensor.from_dense(matrix)}
    made = [encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(values=values), seed) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_sums_over_senders_stay_unbiased():
    """What the server averages: many clients that round on their own come near the value, although each is ternary."""
    table = table_of([LoraModule("m", 64, 1, 1)])
    name = tensor_name("m", "B")
    matrix = torch.linspace(-1, 1, 64).reshape(64, 1)
    delta = {name: SparseTensor.from_mask(matrix, matrix.abs() > 0.1)}
    mean = torch.zeros(64, 1)
    for seed in range(2000):
        payload = encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(values="ternary"), seed)
        mean += decode_delta(payload, table)[1][name].dense() / 2000
    assert torch.allclose(mean, delta[name].dense(), atol=0.06)

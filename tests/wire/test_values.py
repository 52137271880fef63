"""Number types, held against float64: nearest floats, unbiased integers, scales that hold their block."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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
    # A block that lies on the levels of a scale of 1, all but one value.
    found = back(TYPES[5], np.array([7.0, 0.4, 0.0, -3.0], dtype=np.float32), 4)
    assert found.tolist() == [7.0, 0.0, 0.0, -3.0]


def scales_of(type_, values, block):
    return BFLOAT16.floats(type_.quantise(values, Place(len(values), None, len(values)), block, None).scales)


def errors(values, scales, levels):
    """The squared error of each block, (blocks, block) float64, with the nearest levels under its scale."""
    scales = np.broadcast_to(scales, len(values))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(scales > 0, np.clip(np.rint(values / scales), -levels, levels), 0)
    return ((level * scales - values) ** 2).sum(1)


SHAPES = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "laplace": lambda random, shape: random.laplace(size=shape),
    "uniform": lambda random, shape: random.uniform(-1, 1, shape),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@pytest.mark.parametrize("block", [16, 128, 1000])
def test_nearest_has_the_least_squared_error(type_, shape, block):
    random = np.random.default_rng(3)
    values = (SHAPES[shape](random, (6000 // block, block)) * 1e-3).astype(np.float32)
    exact = values.astype(np.float64)
    largest = np.abs(exact).max(1)
    found = errors(exact, scales_of(type_, values.reshape(-1), block), type_.levels)
    grid = np.linspace(0.02, 1.3, 1200)
    best = np.min([errors(exact, largest / type_.levels * factor, type_.levels) for factor in grid], axis=0)
    if type_.levels < 127 and block >= 128:
        assert found.sum() <= 1.02 * best.sum()
    elif type_.levels < 127:  # a few values to a block: its error has narrow minima
        assert found.sum() <= 1.08 * best.sum()
    # Scales are bfloat16: the least one that takes the block's largest value is what there is to compare with.
    whole = BFLOAT16.words((largest / type_.levels).astype(np.float32)).astype(np.uint16)
    short = BFLOAT16.floats(whole) * np.float64(type_.levels) < largest
    whole = BFLOAT16.floats(whole + short.astype(np.uint16))
    assert (found <= 1.02 * errors(exact, whole, type_.levels)).all()


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@settings(deadline=None)
@given(
    values=hnp.arrays(
        np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    block=st.integers(1, 50),
)
def test_nearest_takes_every_finite_value(type_, values, block):
    """Huge, tiny and zero: the scale is one that a reader takes, and nothing is further off than it was from zero."""
    found = back(type_, values, block).astype(np.float64)
    assert np.isfinite(found).all()
    assert (found[values == 0] == 0).all()
    assert (found * values >= 0).all()
    for start in range(0, len(values), block):
        part = values[start : start + block].astype(np.float64)
        lost = ((found[start : start + block] - part) ** 2).sum()
        assert lost <= (part**2).sum() * (1 + 1e-5)


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.3, 3.4e38, -3.4028235e38, 1e-30, 1.2e-38, 1e-40, 1e-45])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_nearest_of_constants(type_, value, count):
    values = np.full(count, value, dtype=np.float32)
    found = back(type_, values, 128)
    # bfloat16 has eight bits, and steps of 2**-133 below its normal numbers; levels times a scale stay below 2**128.
    assert np.abs(found - np.float64(values)).max() <= abs(value) * 2.0**-8 + 2.0**-133 * type_.levels


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
def test_scales_beyond_what_a_reader_takes_are_refused(type_):
    """Random rounding needs a scale that takes the largest value, and times `levels` it may be infinite."""
    values = np.array([3.4028235e38, 1.0], dtype=np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        back(type_, values, 2, np.zeros(2, dtype=np.float32))


def test_ternary_nearest_is_the_mean_of_what_is_kept():
    values = np.array([4.0, -4.0, 5.0, -3.0, 0.1, -0.2, 0.0, 0.3], dtype=np.float32)
    assert back(TYPES[6], values, 8).tolist() == [4.0, -4.0, 4.0, -4.0, 0.0, 0.0, 0.0, 0.0]


def test_nearest_does_not_depend_on_what_is_worked_on_at_once(monkeypatch):
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    positions = np.flatnonzero(np.random.default_rng(1).random(9000) < 0.6)[:5000]
    place = Place(9000, positions, 5000)
    whole = TYPES[7].quantise(values, place, 70, None)
    for size in (1, 71, 700, 1 << 40):
        monkeypatch.setattr("fedsrd.wire.values._AT_ONCE", size)
        part = TYPES[7].quantise(values, place, 70, None)
        assert part.numbers.tobytes() == whole.numbers.tobytes()
        assert part.scales.tobytes() == whole.scales.tobytes()


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


@pytest.mark.parametrize("values", ["int8", "int4", "int3", "ternary"])
def test_rounding_follows_its_seed(values):
    table = table_of([LoraModule("m", 40, 40, 2)])
    matrix = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    delta = {tensor_name("m", "B"): SparseTensor.from_dense(matrix)}
    made = [encode_delta(delta, table, Kind.UPLINK, 1, 0, WireOptions(values=values), seed) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    nearest = WireOptions(values=values, rounding="nearest")
    assert len({encode_delta(delta, table, Kind.UPLINK, 1, 0, nearest, seed) for seed in (1, 2)}) == 1


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

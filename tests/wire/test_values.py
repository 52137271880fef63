"""Number types, held against float64: nearest floats, unbiased integers, scales that hold their block."""

import contextlib
import itertools

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


def dead_zone(values, levels, threshold):
    """The rule for one block, read plainly in float64: (levels, scale, whether each level is next to a bound)."""
    exact = values.astype(np.float64)
    size = np.abs(exact)
    zero = min(threshold * size.mean(), 0.95 * size.max())
    if not zero:
        return np.zeros(len(values)), 0.0, np.zeros(len(values), dtype=bool)
    with np.errstate(over="ignore"):
        quotient = np.minimum(size / (1.5 * zero) + 1 / 3, 1e3)
    level = np.where(size < zero, 0, np.clip(np.floor(quotient), 1, levels))
    near = np.abs(quotient - np.rint(quotient)) < 1e-9 * (1 + quotient)
    scale = (size * level).sum() / (level**2).sum() if level.any() else 0.0
    return np.sign(exact) * level, scale, near


ugly = st.sampled_from([0.0, -0.0, 1e-45, -3e-42, 1e-38, 1e-4, 1.0, -1.0, 3.0, 1e30, -3e36])
ugly_values = hnp.arrays(np.float32, st.integers(0, 60), elements=st.one_of(st.floats(-9, 9, width=32), ugly))
thresholds = st.one_of(st.sampled_from([1e-250, 1e-30, 0.5, 1.0, 16.0]), st.floats(0.01, 4.0))


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@given(values=ugly_values, block=st.integers(1, 70), threshold=thresholds, sparse=st.booleans())
def test_a_threshold_makes_a_dead_zone(type_, values, block, threshold, sparse):
    positions = np.cumsum(1 + np.arange(len(values)) * 7 % 5) - 1 if sparse else None
    elements = int(positions[-1]) + 3 if sparse and len(values) else len(values)
    place = Place(elements, positions, len(values))
    of_block = (np.arange(len(values)) if positions is None else positions) // block
    expected = {b: dead_zone(values[of_block == b], type_.levels, threshold) for b in np.unique(of_block)}
    longest = max((scale * type_.levels for _, scale, _ in expected.values()), default=0.0)
    if longest > 3e38:
        with contextlib.suppress(ValueError):  # next to float32's largest number both may happen
            type_.quantise(values, place, block, None, threshold)
            assert longest < 3.5e38
        return
    made = type_.quantise(values, place, block, None, threshold)
    assert made.numbers.dtype == np.int8
    assert made.scales.shape == (-(-elements // block),)
    scales = BFLOAT16.floats(made.scales)
    for b in range(len(scales)):
        own = of_block == b
        if b not in expected:
            assert scales[b] == 0
            continue
        levels, scale, near = expected[b]
        got = made.numbers[own]
        if not scales[b]:
            assert scale < 1e-40  # below bfloat16's least number
            assert not got.any()
            continue
        assert (np.abs(got - levels) <= near).all()
        assert (got[values[own] == 0] == 0).all()
        if (got == levels).all():
            assert abs(scales[b] - scale) <= scale * 2.0**-8 * 1.001 + 5e-41


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
def test_the_edge_of_the_dead_zone_is_kept(type_):
    """Values of one magnitude, as an earlier rounding or AdamW's first step left them, are all there."""
    for size, threshold in itertools.product((0.1, 1 / 3, 7e-39, 2e36), (1.0, 1.6, 16.0)):
        for count in (1, 3, 7, 100, 1000):
            values = np.float32(size) * np.resize(np.float32([1, -1, -1]), count)
            found = type_.quantise(values, Place(count, None, count), 128, None, threshold)
            assert np.array_equal(found.numbers, np.sign(values))
            assert np.allclose(BFLOAT16.floats(found.scales), size, rtol=2.0**-8)


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
def test_with_a_threshold_the_scale_is_that_of_least_squared_error(type_):
    """Of all bfloat16 scales under these levels; for ternary it is the mean magnitude of what is kept."""
    values = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    made = type_.quantise(values, Place(256, None, 256), 256, None, 0.7)
    (word,) = made.scales.tolist()
    levels = made.numbers.astype(np.float64)
    errors = {
        w: np.square(values - levels * BFLOAT16.floats(np.uint16([w]))[0]).sum() for w in range(word - 3, word + 4)
    }
    assert min(errors, key=errors.get) == word
    if type_.levels == 1:
        kept = np.abs(values)[np.abs(values.astype(np.float64)) >= 0.7 * np.abs(values.astype(np.float64)).mean()]
        assert BFLOAT16.floats(made.scales)[0] == pytest.approx(kept.mean(), rel=2.0**-8)


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
def test_a_threshold_rounds_alike_wherever_values_lie_and_however_many(type_):
    """Also over the edges of what is worked on at once."""
    values = np.random.default_rng(1).standard_cauchy(70_000).astype(np.float32)
    for block in (1, 100, 20_000, 1 << 20):
        whole = type_.quantise(values, Place(70_000, None, 70_000), block, None, 0.5)
        for offset in (1, 2, 3, 5, 8):
            moved = np.empty(70_016, dtype=np.float32)[offset : offset + 70_000]
            moved[:] = values
            again = type_.quantise(moved, Place(70_000, None, 70_000), block, None, 0.5)
            assert np.array_equal(again.numbers, whole.numbers)
            assert np.array_equal(again.scales, whole.scales)
        every = np.arange(70_000)
        listed = type_.quantise(values, Place(70_000, every, 70_000), block, None, 0.5)
        assert np.array_equal(listed.numbers, whole.numbers)
        first = type_.quantise(values[:block], Place(len(values[:block]), None, len(values[:block])), block, None, 0.5)
        assert np.array_equal(first.numbers, whole.numbers[:block])
        assert first.scales[0] == whole.scales[0]


@pytest.mark.parametrize("type_", INTEGERS, ids=lambda type_: type_.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_threshold_refuses_what_is_not_finite(type_, bad):
    with pytest.raises(ValueError, match=f"does not fit {type_.name}: its scale is no bfloat16"):
        type_.quantise(np.float32([1, bad, 2]), Place(3, None, 3), 2, None, 0.5)


def test_with_a_threshold_a_level_beyond_float32_is_refused():
    """Its scale is there, and a reader would refuse the longest level under it."""
    values = np.float32([1e38, 2e38, -1e38])
    assert TYPES[6].quantise(values, Place(3, None, 3), 3, None, 0.5).numbers.tolist() == [1, 1, -1]
    with pytest.raises(ValueError, match=r"a value of 2e\+38 does not fit int8: its scale is no bfloat16"):
        TYPES[4].quantise(values, Place(3, None, 3), 3, None, 0.5)


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


@pytest.mark.parametrize("values", ["int8", "int4", "int3", "int2", "ternary"])
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

"""Packed integers against Python's own, one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.privacy import packed
from fedsrd.privacy.packed import BLOCK, Layout


@st.composite
def vectors(draw):
    bits = draw(st.integers(1, 32))
    integers = st.integers(-(2**33), 2**33)
    left = draw(st.lists(integers, min_size=1, max_size=90))
    right = draw(st.lists(integers, min_size=len(left), max_size=len(left)))
    return Layout(bits, len(left)), left, right


@given(vectors())
def test_fields_are_integers_modulo_a_power_of_two(drawn):
    layout, left, right = drawn
    whole, half = 1 << layout.bits, 1 << (layout.bits - 1)
    words = packed.pack(np.array(left), layout)
    others = packed.pack(np.array(right), layout)
    assert layout.holds(words)
    assert packed.unpack(words, layout, centred=False).tolist() == [value % whole for value in left]
    assert packed.unpack(words, layout).tolist() == [(value + half) % whole - half for value in left]
    total = words.copy()
    packed.add_(total, others, layout)
    assert layout.holds(total)
    assert packed.unpack(total, layout, centred=False).tolist() == [
        (a + b) % whole for a, b in zip(left, right, strict=True)
    ]
    packed.subtract_(total, words, layout)
    assert total.tolist() == others.tolist()
    packed.subtract_(words, others, layout)
    assert layout.holds(words)
    assert packed.unpack(words, layout, centred=False).tolist() == [
        (a - b) % whole for a, b in zip(left, right, strict=True)
    ]


@given(vectors())
def test_words_are_planes_of_fields(drawn):
    layout, left, _ = drawn
    words = [0] * -(-len(left) // (64 // layout.bits))
    for at, value in enumerate(left):
        field, word = divmod(at, len(words))
        words[word] |= value % (1 << layout.bits) << (field * layout.bits)
    assert packed.pack(np.array(left), layout).tolist() == words


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, 16, 22, 32])
def test_blocks_meet(bits):
    """Longer than the blocks that are worked on at once, and no multiple of them."""
    layout = Layout(bits, (2 * BLOCK + 5) * (64 // bits) - 3)
    random = np.random.default_rng(bits)
    left, right = (random.integers(0, 1 << bits, layout.count) for _ in range(2))
    words, others = packed.pack(left, layout), packed.pack(right, layout)
    packed.add_(words, others, layout)
    assert np.array_equal(packed.unpack(words, layout, centred=False), (left + right) % (1 << bits))
    packed.subtract_(words, others, layout)
    assert np.array_equal(packed.unpack(words, layout, centred=False), left)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_any_integers_go_in(dtype):
    values = np.array([0, 1, 2, 127, 5], dtype)
    assert packed.unpack(packed.pack(values, Layout(7, 5)), Layout(7, 5), centred=False).tolist() == [0, 1, 2, 127, 5]
    assert packed.unpack(packed.pack(-values.astype(np.int8), Layout(8, 5)), Layout(8, 5)).tolist() == [
        0,
        -1,
        -2,
        -127,
        -5,
    ]


@given(st.integers(1, 70000), st.integers(1, 1000))
def test_bits_are_enough_and_not_one_more(clients, levels):
    span = 2 * clients * levels + 1
    if span > 1 << 32:
        with pytest.raises(ValueError, match="at most 32"):
            packed.bits_for(clients, levels)
    else:
        bits = packed.bits_for(clients, levels)
        assert 1 << (bits - 1) < span <= 1 << bits


@pytest.mark.parametrize(("clients", "levels"), [(0, 1), (1, 0), (-3, 4)])
def test_no_bits_for_nobody(clients, levels):
    with pytest.raises(ValueError, match="one or more"):
        packed.bits_for(clients, levels)


@given(vectors())
def test_a_sum_of_all_extremes_is_exact(drawn):
    """bits_for against a sum at both ends of its range, read back centred."""
    layout, left, _ = drawn
    clients, levels = len(left), layout.bits
    fields = Layout(packed.bits_for(clients, levels), 2)
    total = fields.zeros()
    for _ in left:
        packed.add_(total, packed.pack(np.array([levels, -levels]), fields), fields)
    assert packed.unpack(total, fields).tolist() == [clients * levels, -clients * levels]


@given(vectors())
def test_bytes_and_back(drawn):
    layout, left, _ = drawn
    words = packed.pack(np.array(left), layout)
    raw = packed.to_bytes(words)
    assert len(raw) == layout.bytes
    assert raw == b"".join(int(word).to_bytes(8, "little") for word in words)
    again = packed.from_bytes(raw, layout)
    assert again.tolist() == words.tolist()
    again += np.uint64(0)  # A copy that may be changed.
    for wrong in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(ValueError, match="bytes"):
            packed.from_bytes(wrong, layout)


def test_bits_beyond_the_fields_are_refused():
    layout = Layout(3, 5)
    raw = (1 << 63).to_bytes(8, "little")
    with pytest.raises(ValueError, match="beyond"):
        packed.from_bytes(raw, layout)
    with pytest.raises(ValueError, match="expected"):
        packed.unpack(np.array([1 << 63], np.uint64), layout)


@pytest.mark.parametrize(("bits", "count"), [(0, 5), (33, 5), (4, 0), (4, 1 << 37), (4.5, 3), (4, float("nan"))])
def test_no_such_layout(bits, count):
    with pytest.raises(ValueError, match="validation"):
        Layout(bits, count)


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((5, 1), int), np.zeros(6, int), np.zeros(5)])
def test_only_so_many_integers_are_packed(values):
    with pytest.raises(ValueError, match="expected 5 integers"):
        packed.pack(values, Layout(4, 5))

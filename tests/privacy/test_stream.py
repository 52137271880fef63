"""Secret streams: the same for the same names, another for any other, uniform and normal as they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.privacy.stream import Stream, derived, public

SECRET = b"s" * 32
NAMES = st.lists(st.one_of(st.text(max_size=4), st.integers(-5, 5), st.binary(max_size=4)), max_size=4)


def kinds(names):
    return [(type(name), name) for name in names]


@given(names=NAMES, others=NAMES)
def test_streams_are_the_names_alone(names, others):
    assert Stream(SECRET, *names).bytes(16) == Stream(SECRET, *names).bytes(16)
    if kinds(names) != kinds(others):
        assert Stream(SECRET, *names).bytes(16) != Stream(SECRET, *others).bytes(16)
    assert Stream(b"t" * 32, *names).bytes(16) != Stream(SECRET, *names).bytes(16)


def test_the_keystream_is_chacha20s():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    plain = Cipher(algorithms.ChaCha20(derived(SECRET, "a"), bytes(16)), mode=None).encryptor().update(bytes(100))
    stream = Stream(SECRET, "a")
    assert stream.bytes(60) + stream.bytes(40) == plain


def test_numbers_are_spread_as_they_say():
    stream = Stream(SECRET, "numbers")
    uniform, normal = stream.uniform(200_000), stream.normal(200_001)
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005
    assert len(normal) == 200_001
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((normal**power).mean() - moment) < 0.1
    assert abs(np.corrcoef(normal[:100_000], normal[100_001:])[0, 1]) < 0.02


@given(bounds=st.lists(st.one_of(st.integers(1, 10), st.integers(1, 1 << 62)), max_size=30))
def test_integers_stay_below_their_bounds(bounds):
    found = Stream(SECRET, "below").below(np.array(bounds, dtype=np.int64))
    assert all(0 <= value < bound for value, bound in zip(found.tolist(), bounds, strict=True))


def test_integers_are_uniform():
    found = np.bincount(Stream(SECRET, "u").below(np.full(60_000, 6)), minlength=6)
    assert np.abs(found - 10_000).max() < 6 * math.sqrt(10_000)


def test_a_secret_has_32_bytes():
    with pytest.raises(ValueError, match="expected 32"):
        Stream(b"short")
    assert public(1) != public(2)
    assert len(public(1)) == 32

"""Shares of noise: clipped and rounded vectors within their bound, and a sum that has the noise it should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsrd.errors import PrivacyError
from fedsrd.privacy.distributed import DistributedNoise
from fedsrd.privacy.stream import Stream

SECRET = bytes(range(32))
ugly = st.sampled_from([0.0, -0.0, 1e-45, 1e-20, -3.0, 1e30, -3e38])
vectors = hnp.arrays(np.float32, st.integers(1, 60), elements=st.one_of(st.floats(-9, 9, width=32), ugly))


@settings(max_examples=60, deadline=None)
@given(vectors, st.floats(0.01, 100), st.sampled_from([1, 7, 127, 4095, 32767]), st.integers(0, 9))
def test_a_rounded_vector_is_the_clipped_one_to_within_a_step_and_no_longer_than_its_bound(values, clip, levels, name):
    noise = DistributedNoise(1.0, clip, levels, 3, 4, len(values))
    found = noise.rounded(values, Stream(SECRET, name))
    exact = values.astype(np.float64)
    norm = math.sqrt((exact**2).sum())
    exact *= min(1.0, clip / norm) if norm else 1.0
    assert np.abs(found * noise.step - exact).max() <= noise.step * (1 + 1e-6)
    assert (found.astype(np.float64) ** 2).sum() <= noise.bound**2 * (1 + 1e-12)
    root = math.sqrt(len(values))
    assert noise.bound**2 == pytest.approx(
        min(levels**2 + len(values) / 4 + levels + root / 2, (levels + root) ** 2), rel=1e-12
    )


def test_rounding_is_right_in_the_mean():
    values = np.linspace(-0.4, 0.4, 41).astype(np.float32)
    noise = DistributedNoise(1.0, 10.0, 20, 3, 4, len(values))
    total = sum(noise.rounded(values, Stream(SECRET, draw)) for draw in range(4000))
    assert np.abs(total * noise.step / 4000 - values).max() < 5 * 0.5 * noise.step / math.sqrt(4000)


def test_the_sum_over_the_threshold_has_the_noise_that_was_asked_for():
    count, shares = 40_000, 3
    noise = DistributedNoise(0.5, 1.0, 4095, shares, 5, count)
    zeros = np.zeros(count, dtype=np.float32)
    parts = [noise.share(zeros, SECRET, "run", client)[1] for client in range(shares)]
    total = sum(parts)
    assert total.std() == pytest.approx(noise.sigma, rel=0.02)
    assert np.abs(total).max() <= noise.reach
    assert noise.rho == pytest.approx(1 / (2 * 0.5**2), rel=1e-3)
    assert abs(np.corrcoef(parts[0], parts[1])[0, 1]) < 0.03


def test_one_update_has_one_noise_and_another_has_another():
    noise = DistributedNoise(1.0, 1.0, 100, 2, 2, 50)
    one = np.full(50, 0.01, dtype=np.float32)
    again = [noise.share(one, SECRET, "run", 1) for _ in range(2)]
    assert np.array_equal(again[0][1], again[1][1])
    assert np.array_equal(again[0][0], again[1][0])
    other = one.copy()
    other[0] = 0.02
    assert not np.array_equal(noise.share(other, SECRET, "run", 1)[1], again[0][1])
    assert not np.array_equal(noise.share(one, bytes(32), "run", 1)[1], again[0][1])


def test_a_grid_too_coarse_for_its_noise_is_refused():
    with pytest.raises(PrivacyError, match="choose more levels"):
        DistributedNoise(0.1, 1.0, 1, 3, 4, 1).share(np.zeros(1, dtype=np.float32), SECRET)

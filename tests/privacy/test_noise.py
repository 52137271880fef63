"""Integer noise against its density, and its accounting against the formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.errors import PrivacyError
from fedsrd.privacy import noise
from fedsrd.privacy.accounting import Event
from fedsrd.privacy.accounting import epsilon as gaussian_epsilon
from fedsrd.privacy.stream import Stream

SECRET = b"n" * 32


def density(variance, reach):
    weights = np.exp(-np.square(np.arange(-reach, reach + 1), dtype=float) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 3), (1, 1), (64, 16), (225, 16), (400, 1)])
def test_the_sampler_has_the_discrete_gaussians_density(numerator, denominator):
    count, reach = 200_000, 12 * math.ceil(math.sqrt(numerator / denominator))
    drawn = noise.discrete_gaussian(count, numerator, denominator, Stream(SECRET, numerator, denominator))
    assert drawn.dtype == np.int64
    expected = count * density(numerator / denominator, reach)
    seen = np.bincount(drawn + reach, minlength=2 * reach + 1)[: 2 * reach + 1]
    kept = expected > 5
    chi = (np.square(seen[kept] - expected[kept]) / expected[kept]).sum()
    # The 10^-9 point of chi squared, by Wilson and Hilferty.
    degrees = kept.sum()
    assert chi < degrees * (1 - 2 / (9 * degrees) + 6.0 * math.sqrt(2 / (9 * degrees))) ** 3


def test_large_noise_has_its_variance_and_no_bound_of_words():
    drawn = noise.discrete_gaussian(20_000, 16 * (1 << 40), 16, Stream(SECRET)).astype(float)
    assert abs(drawn.std() / (1 << 20) - 1) < 0.03
    assert abs(drawn.mean()) < 6 * (1 << 20) / math.sqrt(len(drawn))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 3), (1, 1), (7, 2), (10**15, 10**14)])
def test_a_chance_is_exact_on_both_ways(a, b, monkeypatch):
    count = 40_000
    quick = noise._chance(np.full(count, a), b, Stream(SECRET, a, b))
    assert abs(quick.mean() - math.exp(-a / b)) < 6 * math.sqrt(0.25 / count)
    monkeypatch.setattr(noise, "_MARGIN", 10.0)
    slow = noise._chance(np.full(500, a), b, Stream(SECRET, a, b))
    np.testing.assert_array_equal(slow, quick[:500])


@given(sigma=st.floats(4, 1e4), clients=st.integers(1, 64), seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=20)
def test_shares_of_the_fewest_clients_sum_to_the_noise_that_was_asked_for(sigma, clients, seed):
    try:
        numerator, parts = noise.share_of(sigma, clients)
    except PrivacyError:
        assert sigma * sigma / clients < noise.LEAST**2
        return
    assert clients * numerator / parts >= sigma * sigma
    assert clients * numerator / parts <= sigma * sigma + clients / parts
    total = sum(noise.noise_share(400, sigma, clients, Stream(seed, place)) for place in range(min(clients, 8)))
    wanted = math.sqrt(min(clients, 8) * numerator / parts)
    assert 0.75 < total.std() / wanted < 1.25
    assert np.abs(total).max() <= noise.reach(sigma, clients, min(clients, 8), 400)


def test_noise_that_the_grid_does_not_bear_is_refused():
    for sigma, clients in ((1.0, 1), (10.0, 100), (math.nan, 2), (-1.0, 2), (1e12, 2)):
        with pytest.raises(PrivacyError, match="expected"):
            noise.noise_share(3, sigma, clients, Stream(SECRET))


@given(values=st.lists(st.integers(-(1 << 15), 1 << 15), max_size=50), most=st.floats(1e-3, 1e6))
def test_integers_are_clipped_to_a_norm(values, most):
    whole = np.array(values, dtype=np.int64)
    found = noise.clip_integers(whole, most)
    norm = math.sqrt(sum(value * value for value in values))
    assert math.sqrt(sum(int(value) ** 2 for value in found)) <= most
    if norm <= most:
        np.testing.assert_array_equal(found, whole)
    else:
        assert np.all(np.abs(found - whole * (most / norm)) <= 1)


def test_a_sum_of_shares_is_accounted_for_like_one_gaussian():
    # tau is nothing at a share of 5 steps, so rho is 1 / (2 z^2), and ten rounds are a Gaussian's of z / sqrt(10).
    rho = noise.concentrated(2.0, 100.0, 4, 10**7)
    assert rho == pytest.approx(1 / 8, rel=1e-3)
    ours = noise.epsilon(10 * rho, 1e-5)
    exact = gaussian_epsilon([Event(noise_multiplier=2.0, sampling_rate=1.0, steps=10)], 1e-5)
    assert exact < ours < 1.2 * exact


def test_small_shares_and_many_elements_cost():
    # At 2 steps a share, tau d / 2 of 10^9 elements is still small; the formula, written out.
    variance, clients, count, norm = 4.0, 3, 10**9, 10.0
    multiplier = math.sqrt(clients * variance) / norm
    tau = 10 * (math.exp(-(math.pi**2) * variance) + math.exp(-4 / 3 * math.pi**2 * variance))
    whole = norm / math.sqrt(clients * variance)
    expected = min(math.sqrt(whole**2 + tau * count / 2), whole + tau * math.sqrt(count)) ** 2 / 2
    assert noise.concentrated(multiplier, norm, clients, count) == pytest.approx(expected, rel=1e-9)


def test_a_part_of_the_elements_a_round_has_a_part_of_the_noise_for_the_same_epsilon():
    """A cyclic schedule of period 3 sends a third of the elements a round, clipped to the same norm: rho does not know
    how many they are, and the noise's energy in all rounds together is a third of a dense schedule's."""
    rounds, elements, norm, multiplier = 9, 3000, 1000.0, 1.0
    dense = rounds * noise.concentrated(multiplier, norm, 4, elements)
    cyclic = rounds * noise.concentrated(multiplier, norm, 4, elements // 3)
    assert cyclic == pytest.approx(dense)
    energy = [
        sum(
            float(np.square(noise.noise_share(count, multiplier * norm, 4, Stream(SECRET, count, r))).sum())
            for r in range(rounds)
        )
        for count in (elements, elements // 3)
    ]
    assert energy[1] / energy[0] == pytest.approx(1 / 3, rel=0.1)

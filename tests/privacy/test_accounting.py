"""Epsilon against closed forms, other accountants and published figures."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.errors import PrivacyError
from fedsrd.privacy.accounting import LEAST_NOISE, Event, epsilon, merged, noise_multiplier


def event(noise, rate, steps):
    return Event(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def gaussian_delta(eps, mu):
    """Balle and Wang, arXiv 1805.06530, theorem 8, with mu = sensitivity / sigma."""
    return phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)


@settings(max_examples=30)
@given(noise=st.floats(0.5, 50), steps=st.integers(1, 50), delta=st.floats(1e-8, 1e-2))
def test_without_sampling_it_is_the_gaussian_mechanisms_closed_form(noise, steps, delta):
    found = epsilon([event(noise, 1.0, steps)], delta)
    mu = math.sqrt(steps) / noise
    if found == 0:
        assert gaussian_delta(0, mu) <= delta * 1.001
        return
    # Never below the truth, and hardly above.
    assert gaussian_delta(found, mu) <= delta * (1 + 1e-6)
    low = max(found * 0.995 - 0.02, 0)
    assert gaussian_delta(low, mu) >= delta or low == 0


def test_published_figures():
    # Abadi et al., arXiv 1607.00133, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5: epsilon 1.26 by
    # their moments; a tight accountant is below.
    assert 0.9 < epsilon([event(4.0, 0.01, 10_000)], 1e-5) < 1.26
    # TensorFlow Privacy's MNIST example: 60,000 examples, batches of 256, 60 epochs, noise 1.1, delta 1e-5: 2.92 by
    # Renyi divergences when it was published, 2.60 with a tighter conversion.
    assert 2.3 < epsilon([event(1.1, 256 / 60_000, 60 * 60_000 // 256)], 1e-5) < 2.6


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.02, 100), (0.8, 0.1, 300), (3.0, 0.5, 40)])
def test_it_is_near_opacus_accountants(noise, rate, steps):
    from opacus.accountants import PRVAccountant, RDPAccountant

    ours = epsilon([event(noise, rate, steps)], 1e-5)
    found = []
    for kind in (PRVAccountant, RDPAccountant):
        accountant = kind()
        for _ in range(1):
            accountant.history = [(noise, rate, steps)]
        found.append(accountant.get_epsilon(1e-5))
    assert ours == pytest.approx(found[0], rel=0.02)
    assert ours < found[1]


def test_kinds_compose_and_their_order_is_nothing():
    parts = [event(1.0, 0.1, 20), event(2.0, 0.3, 10)]
    both = epsilon(parts, 1e-5)
    assert both == epsilon(parts[::-1], 1e-5)
    assert both == epsilon([event(1.0, 0.1, 5), parts[1], event(1.0, 0.1, 15), event(3.0, 0.2, 0)], 1e-5)
    assert max(epsilon([part], 1e-5) for part in parts) < both < sum(epsilon([part], 5e-6) for part in parts)
    assert merged([parts[1], parts[0], parts[0]]) == [event(1.0, 0.1, 40), parts[1]]


def test_nothing_costs_nothing_and_no_noise_costs_all():
    assert epsilon([], 1e-5) == epsilon([event(1.0, 0.1, 0)], 1e-5) == 0
    assert epsilon([event(1.0, 0.1, 10), event(0.0, 0.1, 1)], 1e-5) == math.inf
    assert epsilon([event(LEAST_NOISE / 2, 0.1, 1)], 1e-5) == math.inf
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected 0 < delta < 1"):
            epsilon([event(1.0, 0.1, 1)], delta)


@settings(max_examples=8)
@given(wanted=st.floats(0.2, 20), rate=st.floats(0.005, 1.0), steps=st.integers(1, 300))
def test_the_noise_for_an_epsilon_is_enough_and_hardly_more(wanted, rate, steps):
    try:
        noise = noise_multiplier(wanted, 1e-5, rate, steps)
    except PrivacyError as error:
        assert "next to no noise" in str(error)  # noqa: PT017
        return
    assert epsilon([event(noise, rate, steps)], 1e-5) <= wanted
    assert epsilon([event(noise * 0.99, rate, steps)], 1e-5) > wanted * 0.98


def test_what_no_noise_can_give_is_said():
    with pytest.raises(PrivacyError, match="no noise is enough"):
        noise_multiplier(1e-9, 1e-12, 1.0, 10)


@pytest.mark.parametrize("steps", [10**7, 10**12, 10**15])
def test_absurd_numbers_of_steps_are_answered_at_once(steps):
    assert epsilon([event(1.0, 0.5, steps)], 1e-5) == math.inf
    assert epsilon([event(0.06, 1.0, steps)], 1e-5) == math.inf
    with pytest.raises(PrivacyError):
        noise_multiplier(1e-6, 1e-12, 1.0, steps * 10**3)


def test_many_steps_are_composed_by_renyi_divergences_which_are_no_less():
    from fedsrd.privacy import accounting

    event_ = event(2.0, 0.01, 10_000)
    tight = epsilon([event_], 1e-5)
    loose = accounting._by_renyi(((2.0, 0.01, 10_000),), 1e-5)
    assert tight < loose < 1.3 * tight
    assert epsilon([event(5.0, 0.001, 10**7)], 1e-5) < 100

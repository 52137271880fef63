"""What training has given away: epsilon for a delta, by Google's dp-accounting.

A step of DP-SGD (Abadi et al., CCS 2016, arXiv 1607.00133) is a Gaussian mechanism on a Poisson sample of the examples.
Steps are composed by their privacy loss distributions (Koskela et al., arXiv 1906.03049), which is tighter than Renyi
divergences and, with the pessimistic rounding that is used here, never below the truth. Two data sets are neighbours
where one has one example more.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fedsrd.errors import PrivacyError

MOST_STEPS = 10**15
LEAST_NOISE, MOST_NOISE = 0.05, 1e6
"""Noise multipliers that are told apart: one step with less than the first has an epsilon of hundreds, and counts as
one without noise."""
LOST = 1e3
"""Where steps lose so many nats of privacy in the mean, they count as steps without noise: no epsilon of that size says
anything, and whoever names absurd numbers must not keep the accountant busy."""
QUICK = 10**5
"""More steps than so many are composed by Renyi divergences, which take no time; epsilon is a tenth larger or so."""
ORDERS = [*range(2, 64), 80, 96, 128, 192, 256, 512, 1024]
GRID = 1e-3
"""Of privacy losses: what it adds to epsilon is at most 0.4 % over 14,000 steps, never less than nothing."""


class Event(BaseModel):
    """Steps of one kind.

    Attributes:
        noise_multiplier: standard deviation of the noise in a step's sum, in clips.
        sampling_rate: chance of each example to be in a step.
        steps: how many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    noise_multiplier: Annotated[float, Field(ge=0, le=MOST_NOISE)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=0, le=MOST_STEPS)]


class Spent(BaseModel):
    """A guarantee: (epsilon, delta)-differential privacy; epsilon infinite where there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


class _Kind(NamedTuple):
    noise_multiplier: float
    sampling_rate: float


def merged(events: Iterable[Event]) -> list[Event]:
    """The same events, those of one kind in one, in an order that does not depend on theirs."""
    found: dict[_Kind, int] = {}
    for event in events:
        kind = _Kind(event.noise_multiplier, event.sampling_rate)
        found[kind] = found.get(kind, 0) + event.steps
    return [
        Event(noise_multiplier=kind.noise_multiplier, sampling_rate=kind.sampling_rate, steps=steps)
        for kind, steps in sorted(found.items())
        if steps
    ]


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The epsilon of all these steps together, for this delta; infinite where one had next to no noise.

    Raises:
        ValueError: delta is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta}: expected 0 < delta < 1")
    found = merged(events)
    if not found:
        return 0.0
    if found[0].noise_multiplier < LEAST_NOISE or sum(map(_mean_loss, found)) > LOST:
        return math.inf
    return _epsilon(tuple((event.noise_multiplier, event.sampling_rate, event.steps) for event in found), delta)


def noise_multiplier(wanted: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise multiplier with which so many steps stay within an epsilon, rounded up to three digits.

    Raises:
        PrivacyError: no noise up to 10^6 clips is enough, or next to none would do.
    """
    if not 0 < steps <= MOST_STEPS:
        raise PrivacyError(f"{steps} steps under an epsilon: expected 1 to {MOST_STEPS:.0e}")

    def spent(noise: float) -> float:
        return epsilon([Event(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)], delta)

    return _calibrated(spent, wanted, f"epsilon = {wanted:g} with delta = {delta:g}, {steps} steps")


def _calibrated(spent: Callable[[float], float], wanted: float, what: str) -> float:
    low, high = LEAST_NOISE, 1.0
    while spent(high) > wanted:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise PrivacyError(f"{what}: no noise is enough; expected a larger epsilon, or fewer steps")
    # Three digits: what is finer costs time and buys nothing.
    while high - low > 5e-4 * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= wanted else (middle, high)
    if high < 2 * LEAST_NOISE:
        raise PrivacyError(f"{what}: asks for next to no noise ({high:.2g} clips), which protects nobody")
    return _up(high)


def _up(value: float) -> float:
    digits = 3 - math.ceil(math.log10(value))
    unit = float(10.0**-digits)
    return round(math.ceil(value / unit) * unit, max(digits, 0))


def _mean_loss(event: Event) -> float:
    """What the steps lose in the mean at most, in nats: the divergence of Kullback and Leibler, no more than the
    one by chi squared, and convex in the sampling rate.
    """
    rate, whole = event.sampling_rate, event.noise_multiplier**-2
    return event.steps * min(rate * rate * math.expm1(min(whole, 50.0)), rate * whole / 2)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if sum(steps for _, _, steps in events) > QUICK:
        return _by_renyi(events, delta)
    whole = None
    for noise, rate, steps in events:
        one = _step(noise, rate).self_compose(steps)
        whole = one if whole is None else whole.compose(one)
    found: float = 0.0 if whole is None else whole.get_epsilon_for_delta(delta)
    return found


def _by_renyi(events: tuple[tuple[float, float, int], ...], delta: float) -> float:
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS)
    for noise, rate, steps in events:
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    found: float = accountant.get_epsilon(delta)
    return found


@lru_cache(maxsize=256)
def _step(noise: float, rate: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=GRID, use_connect_dots=True
    )

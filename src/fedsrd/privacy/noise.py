"""Integer noise that clients add before their vectors are masked: a share each, so that the sum has enough of it.

The discrete Gaussian of Canonne, Kamath and Steinke (arXiv 2004.00010), whose sums over clients Kairouz, Liu and
Steinke account for (arXiv 2102.06387). It is drawn from integers: every chance exp(-a/b) with integers a and b is
compared with random bits, in float64 where 62 bits decide with room to spare, and else in 60 digits with 128 bits
more. So no output has a chance that rounding made, which is what attacks on floating-point noise live on (Mironov, CCS
2012). How long a draw takes depends on what is drawn; whoever can time a client to the microsecond is not kept out.
"""

import math
from decimal import Decimal, localcontext

import numpy as np

from fedsrd.errors import PrivacyError
from fedsrd.privacy.stream import Stream

PARTS = 16
"""A share's variance is a multiple of 1/16."""
LEAST = 2.0
"""Smallest standard deviation of a share, in steps of the grid: with it, a sum of discrete Gaussians is as good as one
to within 10^-16 an element; with 1, that is lost in the number of elements."""
LARGEST = float(1 << 24)
_MARGIN = 2.0**-38
"""Relative: far more than float64's error of exp(-a/b) up to a/b = 1000, which is below 2^-41."""
_FAR = 64
"""A proposal beyond so many of its scales is not taken: its chance to be is below 10^-800."""


def share_of(sigma: float, clients: int) -> tuple[int, int]:
    """The variance of one client's share as a fraction, rounded up, where the sum over so many is to have a standard
    deviation of at least `sigma`.

    Args:
        sigma: of the sum, in steps of the grid.
        clients: that remain in a round at least: the threshold of secure aggregation. More give more noise.

    Raises:
        PrivacyError: a share would be smaller than the grid bears, or larger than 2^24.
    """
    if not (math.isfinite(sigma) and sigma > 0 and clients >= 1):
        raise PrivacyError(f"noise of {sigma:g} steps over {clients} clients: expected both positive")
    numerator = math.ceil(sigma * sigma / clients * PARTS)
    if not LEAST**2 * PARTS <= numerator <= LARGEST**2 * PARTS:
        raise PrivacyError(
            f"noise of {sigma:g} steps over {clients} clients is {math.sqrt(numerator / PARTS):.3g} steps a client: "
            f"expected {LEAST:g} to {LARGEST:g}; choose more levels (or fewer, where it is too large)"
        )
    return numerator, PARTS


def noise_share(count: int, sigma: float, clients: int, stream: Stream) -> np.ndarray:
    """One client's share of the noise of a sum. Shape (count,), dtype int64.

    Args:
        count: elements.
        sigma: standard deviation of the sum's noise, in steps of the grid: noise_multiplier times the L2 norm, in
            steps, to which every client's integers are clipped (`clip_integers`).
        clients: as in `share_of`.
        stream: random bits; from a secret of the client's that the server does not have.

    Raises:
        PrivacyError: as `share_of`.
    """
    return discrete_gaussian(count, *share_of(sigma, clients), stream)


def clip_integers(values: np.ndarray, most: float) -> np.ndarray:
    """Integers whose L2 norm is at most `most`: these, or scaled down and rounded towards zero. Shape and dtype int64.

    What rounding to the grid has added is clipped too, so that the bound is one of what is sent.
    """
    whole = values.astype(np.int64)
    norm = math.sqrt(float(np.square(whole, dtype=np.float64).sum()))
    if norm <= most:
        return whole
    # Towards zero: rounding makes nothing longer.
    found: np.ndarray = np.trunc(whole * (most / norm * (1 - 1e-9))).astype(np.int64)
    return found


def reach(sigma: float, clients: int, asked: int, count: int) -> int:
    """What the noise in a sum stays within, in steps, but for a chance of 2^-40: what the modulus must have room for
    beside the values.

    Args:
        sigma: as in `noise_share`.
        clients: likewise.
        asked: clients that add a share at most.
        count: elements.
    """
    numerator, parts = share_of(sigma, clients)
    # A discrete Gaussian is subgaussian with its own variance (arXiv 2004.00010, corollary 17), and so is a sum.
    return math.ceil(math.sqrt(2 * asked * numerator / parts * (math.log(2 * count) + 40 * math.log(2))))


def concentrated(noise_multiplier: float, norm: float, clients: int, count: int) -> float:
    """Rho of one round's sum: rho-concentrated differential privacy (arXiv 2102.06387, theorem 1 with equation 6).

    Args:
        noise_multiplier: the sum's standard deviation in norms.
        norm: L2 norm, in steps of the grid, to which every client's integers are clipped.
        clients: shares in the sum at least.
        count: elements.

    Raises:
        PrivacyError: as `share_of`.
    """
    numerator, parts = share_of(noise_multiplier * norm, clients)
    variance = numerator / parts
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, clients))
    whole = norm / math.sqrt(clients * variance)
    bound = min(math.sqrt(whole * whole + tau * count / 2), whole + tau * math.sqrt(count))
    return bound * bound / 2


def epsilon(rho: float, delta: float) -> float:
    """The epsilon of rho-concentrated privacy for a delta, by Renyi divergences (dp-accounting); rounds add their rho.

    Raises:
        ValueError: delta is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta}: expected 0 < delta < 1")
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(dp_event.ZCDpEvent(rho=rho))
    return float(accountant.get_epsilon(delta))


def discrete_gaussian(count: int, numerator: int, denominator: int, stream: Stream) -> np.ndarray:
    """P(x) proportional to exp(-x^2 / (2 variance)) on the integers, exactly. Shape (count,), dtype int64.

    Args:
        count: how many.
        numerator: of the variance.
        denominator: of the variance.
        stream: random bits.
    """
    # arXiv 2004.00010, algorithm 3: discrete Laplace proposals of scale t, taken with chance
    # exp(-(|y| - variance / t)^2 / (2 variance)).
    scale = math.isqrt(numerator // denominator) + 1
    found = np.empty(count, dtype=np.int64)
    open_ = np.arange(count)
    while open_.size:
        drawn, is_one = _laplace(open_.size, scale, stream)
        off = np.abs(drawn) * (scale * denominator) - numerator
        near = np.abs(drawn) <= _FAR * scale
        is_one &= near
        is_one[is_one] = _chance(off[is_one], 2 * numerator * denominator * scale**2, stream, square=True)
        found[open_[is_one]] = drawn[is_one]
        open_ = open_[~is_one]
    return found


def _laplace(count: int, scale: int, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Proposals of the discrete Laplace distribution, and which of them are any (algorithm 2, of scale t)."""
    low = stream.below(np.full(count, scale, dtype=np.int64))
    good = _chance(low, scale, stream)
    high = np.zeros(count, dtype=np.int64)
    growing = np.flatnonzero(good)
    while growing.size:
        more = _chance(np.ones(growing.size, dtype=np.int64), 1, stream)
        growing = growing[more]
        high[growing] += 1
    size = low + scale * high
    negative = (stream.words(count) & np.uint64(1)).astype(bool)
    # Zero has two signs, and would come twice as often.
    good &= ~(negative & (size == 0))
    return np.where(negative, -size, size), good


def _chance(numerators: np.ndarray, denominator: int, stream: Stream, *, square: bool = False) -> np.ndarray:
    """True with probability exp(-a / b), exactly: a the numerators (their squares with `square`), int64. Dtype bool."""
    count = numerators.size
    exact = numerators.astype(np.float64)
    ratio = (exact * exact if square else exact) / float(denominator)
    probability = np.exp(-ratio)
    word = (stream.words(count) >> np.uint64(2)).astype(np.int64)
    drawn = word.astype(np.float64) * 2.0**-62
    decided = drawn < probability
    for place in np.flatnonzero(np.abs(drawn - probability) <= probability * _MARGIN + 2.0**-52):
        a = int(numerators[place])
        decided[place] = _decide(int(word[place]), a * a if square else a, denominator, stream)
    return decided


def _decide(word: int, numerator: int, denominator: int, stream: Stream) -> bool:
    """Whether a uniform number that begins with these 62 bits is below exp(-numerator / denominator)."""
    more = int.from_bytes(stream.bytes(16), "little")
    with localcontext() as context:
        context.prec = 80
        drawn = Decimal((word << 128) | more) / Decimal(1 << 190)
        return drawn < (-Decimal(numerator) / Decimal(denominator)).exp()

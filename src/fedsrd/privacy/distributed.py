"""Differential privacy of clients where nobody sees an update: every client adds a share of integer noise to what is
masked (Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, arXiv 2102.06387).

An update is clipped to an L2 norm, rounded at random to a grid until the result is no longer than a bound that rounding
seldom exceeds (their algorithm 1), and gets a share of noise. The grid is the same in all rounds, since steps that
follow the updates would tell of them.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsrd.privacy import noise
from fedsrd.privacy.stream import Stream

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DistributedNoise:
    """How the clients of a round make a vector private together.

    Attributes:
        noise_multiplier: standard deviation of the noise in the sum, in norms of one client's vector at most.
        clip: L2 norm to which an update is scaled down.
        levels: that norm, in steps of the grid.
        shares: of the noise that are in a sum at least: the threshold of secure aggregation.
        asked: shares that can be in it at most.
        count: elements of the vector.
    """

    noise_multiplier: float
    clip: float
    levels: int
    shares: int
    asked: int
    count: int

    @property
    def step(self) -> float:
        """Of the grid."""
        return self.clip / self.levels

    @cached_property
    def bound(self) -> float:
        """L2 norm of a rounded vector, in steps: one that random rounding exceeds with a chance of at most e^-1/2
        (their proposition 26 with beta = e^-1/2), or that no rounding exceeds, whichever is less.
        """
        norm, root = float(self.levels), math.sqrt(self.count)
        likely = norm * norm + self.count / 4 + (norm + root / 2)
        return math.sqrt(min(likely, (norm + root) ** 2))

    @property
    def sigma(self) -> float:
        """Standard deviation of the sum's noise, in steps."""
        return self.noise_multiplier * self.bound

    @cached_property
    def reach(self) -> int:
        """What the sum's noise stays within, in steps (`noise.reach`)."""
        return noise.reach(self.sigma, self.shares, self.asked, self.count)

    @property
    def rho(self) -> float:
        """Of one round, in zero-concentrated privacy (`noise.concentrated`)."""
        return noise.concentrated(self.noise_multiplier, self.bound, self.shares, self.count)

    def rounded(self, values: Array, stream: Stream) -> Array:
        """The grid's integers of an update, no longer than `bound`. Shape (count,), dtype int64.

        Args:
            values: shape (count,), float32 or float64, finite.
            stream: random bits, from a secret of the client's.
        """
        exact = values.astype(np.float64)
        norm = math.sqrt(float(np.square(exact).sum()))
        # A hair less than the clip stays within it as float64 has it.
        exact *= (min(1.0, self.clip * (1 - 1e-9) / norm) if norm else 1.0) / self.step
        while True:
            found: Array = np.floor(exact + stream.uniform(len(exact))).astype(np.int64)
            if float(np.square(found, dtype=np.float64).sum()) <= self.bound**2:
                return found

    def share(self, values: Array, secret: bytes, *names: str | int) -> tuple[Array, Array]:
        """A client's integers, and the share of the noise that is added to them. Shape (count,), dtype int64, both.

        Args:
            values: as in `rounded`.
            secret: 32 bytes that the server does not have.
            names: of the run, the round and the session's attempt: what is masked anew has the same noise.
        """
        # What is noised is in the noise's name: the same noise never hides two updates.
        content = hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).digest()
        parameters = repr((self.noise_multiplier, self.clip, self.levels, self.shares, self.count))
        whole = self.rounded(values, Stream(secret, "rounding", *names, content, parameters))
        noisy = noise.noise_share(
            self.count, self.sigma, self.shares, Stream(secret, "noise share", *names, content, parameters)
        )
        return whole, noisy

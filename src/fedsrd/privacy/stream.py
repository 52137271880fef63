"""Random numbers that nobody computes who lacks a secret: what privacy rests on, drawn so that a repeat draws the same.

`fedsrd.rng` is for numbers that both ends share. Noise that the server can compute protects nobody, so noise and
sampling come from here: the keystream of ChaCha20 (RFC 8439, by `cryptography`) under a key that keyed BLAKE2b makes
of a secret and of names. Names hold all that the noise is for (the data, the parameters, the step): the same query gets
the same answer, which tells nothing new, and any other query gets other noise. So a round may be repeated after a
crash, and no noise is ever used for two sums whose difference would show what it hides.
"""

import hashlib
import math

import numpy as np

SECRET = 32
"""Bytes of a secret."""
Name = str | int | bytes


class Stream:
    """A stream of random bits.

    Args:
        secret: 32 bytes.
        names: what the numbers are for. Equal names give equal numbers.

    Raises:
        ValueError: the secret has another length.
    """

    def __init__(self, secret: bytes, *names: Name) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        key = derived(secret, *names)
        # One key, one stream: no nonce is needed besides.
        self._keystream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._keystream.update(bytes(count))

    def words(self, count: int) -> np.ndarray:
        """Uniform 64-bit words. Shape (count,), dtype uint64."""
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """Uniform in (0, 1), 52 bits each, never 0 or 1. Shape (count,), dtype float64."""
        return ((self.words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> np.ndarray:
        """Standard normal, by Box and Muller. Shape (count,), dtype float64.

        Not an exact sampler: an element has 2^52 possible radii and angles, none above 8.6. What is released of it is a
        sum in float64, rounded to float32, and moved through an optimizer; `noise` has an exact sampler of integers.
        """
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(half)))
        angle = (2.0 * math.pi) * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def below(self, bound: np.ndarray) -> np.ndarray:
        """An integer uniform in [0, bound) for each bound in [1, 2**62], exactly (by rejection). Shape and int64 as
        the bounds'.
        """
        limits = bound.astype(np.uint64)
        # The largest multiple of the bound that 2^63 holds: words from there on would favour small results.
        most = (np.uint64(1 << 63) // limits) * limits
        found = np.empty(limits.shape, dtype=np.int64)
        open_ = np.arange(limits.size)
        while open_.size:
            drawn = self.words(open_.size) >> np.uint64(1)
            good = drawn < most[open_]
            found[open_[good]] = (drawn[good] % limits[open_[good]]).astype(np.int64)
            open_ = open_[~good]
        return found


def derived(secret: bytes, *names: Name) -> bytes:
    """A key of 32 bytes for one purpose: BLAKE2b of the names under the secret. Raises ValueError as `Stream`."""
    if len(secret) != SECRET:
        raise ValueError(f"a secret of {len(secret)} bytes: expected {SECRET}")
    hasher = hashlib.blake2b(key=secret, digest_size=32, person=b"fedsrd-secret-v1")
    for name in names:
        raw = name if isinstance(name, bytes) else str(name).encode()
        # Type and length go in too: ("ab", "c"), ("a", "bc") and (1,), ("1",) are different names.
        tag = b"b" if isinstance(name, bytes) else b"i" if isinstance(name, int) else b"s"
        hasher.update(tag + len(raw).to_bytes(8, "little") + raw)
    return hasher.digest()


def public(seed: int) -> bytes:
    """The "secret" of a run in one process, where nothing is hidden from anybody: it follows from the recipe's seed, so
    that the run repeats itself. Never for a site.
    """
    return hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=SECRET, person=b"fedsrd-public-v1").digest()

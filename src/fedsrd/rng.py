"""Named, seeded random numbers that both ends of a federation expand alike, on every platform.

Everything comes from the raw 64-bit outputs of Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), as numpy implements it. Only the raw outputs are used: numpy promises that they never change,
which it does not promise for its distributions. The 128-bit key is BLAKE2b of the seed and the names, so that two
purposes never share a stream and no stream depends on how many numbers another one drew.
"""

import hashlib
import math

import numpy as np


def philox(seed: int, *names: str | int) -> np.random.Philox:
    """The bit generator for one purpose: `names` say which (for example `"mask", round, module`).

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        names: what the numbers are for; each is text or an integer.

    Raises:
        ValueError: the seed is negative or needs more than 64 bits.

    >>> philox(7, "mask", 1).random_raw() == philox(7, "mask", 1).random_raw()
    True
    >>> philox(7, "mask", 1).random_raw() == philox(7, "mask", 2).random_raw()
    False
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed}: expected 0 <= seed < 2**64")
    hasher = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=16, person=b"fedsrd-philox-v1")
    for name in names:
        # Type and length go in too: ("ab", "c"), ("a", "bc") and (1,), ("1",) are different names.
        tag = b"i" if isinstance(name, int | np.integer) else b"s"
        raw = str(name).encode()
        hasher.update(tag + len(raw).to_bytes(8, "little") + raw)
    return np.random.Philox(key=int.from_bytes(hasher.digest(), "little"))


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy Generator over `philox(seed, *names)`, for choices that only one end makes (data order, splits)."""
    return np.random.Generator(philox(seed, *names))


def integer(seed: int, *names: str | int) -> int:
    """One integer in [0, 2**63), to seed another library's generator (torch's dropout, say)."""
    return int(philox(seed, *names).random_raw()) >> 1


def words(count: int, seed: int, *names: str | int) -> np.ndarray:
    """`count` uniform 32-bit words: each raw output gives two, the low half first. Shape (count,), dtype uint32."""
    raw = philox(seed, *names).random_raw((count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[:count]


def threshold(keep: float) -> int:
    """The number that a 32-bit word must lie under to be kept with this probability: round(keep * 2**32)."""
    return round(keep * (1 << 32))


def bounds(keep: float, first: float = 0.0) -> tuple[int, int]:
    """The 32-bit words that a range of [0, 1) of length `keep` holds: from the one to below the other.

    Each bound is the `threshold` of one end of the range, so that one range ends where the next begins, also where
    i/P + 1/P and (i + 1)/P are different floats: their thresholds are the same for every P up to 2**19.

    Raises:
        ValueError: `keep` or `first` is not in [0, 1], or the range goes past 1.

    >>> [bounds(1 / 3, i / 3) for i in range(3)]
    [(0, 1431655765), (1431655765, 2863311531), (2863311531, 4294967296)]
    """
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep {keep}: expected a probability in [0, 1]")
    if not 0.0 <= first <= 1.0 or threshold(first + keep) > 1 << 32:
        raise ValueError(f"first {first}, keep {keep}: expected a range from first to first + keep within [0, 1]")
    return threshold(first), threshold(first + keep)


def keep_mask(count: int, keep: float, seed: int, *names: str | int, first: float = 0.0) -> np.ndarray:
    """Independent draws that are True with probability `keep`. Shape (count,), dtype bool.

    An element is kept when its 32-bit word lies within `bounds(keep, first)`, so the mask follows from the seed, the
    names and the range alone. Masks of ranges that do not overlap have no element in common, and those of ranges that
    fill [0, 1) together have every element once.

    Raises:
        ValueError: as `bounds`.

    >>> keep_mask(4, 1.0, 0, "mask").tolist()
    [True, True, True, True]
    """
    low, high = bounds(keep, first)
    if high - low in (0, 1 << 32):
        return np.full(count, high > low)
    drawn = words(count, seed, *names)
    # Words below the range wrap around and become larger than any within it.
    return drawn - np.uint32(low) < np.uint32(high - low) if low else drawn < np.uint32(high)


def fraction(count: int, seed: int, *names: str | int) -> np.ndarray:
    """Numbers uniform in [0, 1): (word >> 8) * 2**-24. Shape (count,), dtype float32, the same bits everywhere."""
    return (words(count, seed, *names) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def uniform(count: int, bound: float, seed: int, *names: str | int) -> np.ndarray:
    """Numbers uniform in [-bound, bound). Shape (count,), dtype float32, the same bits everywhere.

    Each is a `fraction` moved to [-1, 1) without rounding, times `bound` in one float32 product.
    """
    return (fraction(count, seed, *names) * np.float32(2.0) - np.float32(1.0)) * np.float32(bound)


def kaiming_bound(fan_in: int) -> float:
    """Bound of PEFT's initial A: Kaiming uniform with a = sqrt(5) is U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return 1.0 / math.sqrt(fan_in)

"""Named random numbers: frozen values, because both ends and all versions must agree on them."""

import itertools

import numpy as np
import pytest

from fedsrd import rng


def test_the_stream_is_frozen():
    assert rng.words(5, 1, "a").tolist() == [2574934831, 4018803949, 2158394072, 1231224690, 511269538]
    assert rng.keep_mask(10, 0.3, 1, "b").nonzero()[0].tolist() == [1, 2]
    assert rng.uniform(4, 0.5, 1, "x").tobytes().hex() == "4c64b23e0886bfbdbe08f8be64627c3e"


def test_a_longer_draw_starts_alike_and_names_are_told_apart():
    assert np.array_equal(rng.words(7, 3, "n", 1), rng.words(100, 3, "n", 1)[:7])
    streams = [("n",), ("n", 1), ("n", "1"), ("n1",), (1, "n"), ("", "n1")]
    assert np.array_equal(rng.words(4, 3, "n", np.int64(1)), rng.words(4, 3, "n", 1))
    assert len({tuple(rng.words(4, 3, *names)) for names in streams}) == len(streams)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 1.0])
def test_masks_keep_their_share(keep):
    assert rng.keep_mask(200_000, keep, 0, "share").mean() == pytest.approx(keep, abs=0.005)


@pytest.mark.parametrize("parts", range(2, 41))
def test_ranges_that_fill_the_whole_divide_all_elements(parts):
    """Whichever way a caller comes to the same end: i/P + 1/P, or (i + 1)/P."""
    ranges = [(i / parts, 1 / parts) for i in range(parts)]
    ranges += [(i / parts, (i + 1) / parts - i / parts) for i in range(parts)]
    ends = [rng.bounds(keep, first) for first, keep in ranges]
    assert ends[:parts] == ends[parts:]
    assert ends[0][0] == 0
    assert ends[parts - 1][1] == 1 << 32
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends[:parts]))
    masks = [rng.keep_mask(5000, keep, 3, "m", first=first) for first, keep in ranges[:parts]]
    assert (np.sum(masks, axis=0) == 1).all()
    words = rng.words(5000, 3, "m").astype(np.uint64)
    for mask, (low, high) in zip(masks, ends, strict=False):
        assert np.array_equal(mask, (words >= low) & (words < high))


def test_a_range_may_be_empty_or_everything():
    for first in (0.0, 0.3, 1.0):
        assert not rng.keep_mask(1000, 0.0, 3, "m", first=first).any()
    assert rng.keep_mask(1000, 1.0, 3, "m").all()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"keep 1\.5"):
        rng.keep_mask(3, 1.5, 0)
    for keep, first in ((0.5, 0.6), (0.5, -0.1), (0.0, 1.5), (0.5, float("nan"))):
        with pytest.raises(ValueError, match=f"first {first}, keep {keep}: expected a range"):
            rng.keep_mask(3, keep, 0, first=first)
    with pytest.raises(ValueError, match="seed -1"):
        rng.philox(-1)


def test_uniform_stays_inside_its_bound():
    drawn = rng.uniform(100_000, 0.25, 0, "u")
    assert drawn.dtype == np.float32
    assert -0.25 <= drawn.min() < -0.2499
    assert 0.2499 < drawn.max() < 0.25

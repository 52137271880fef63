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


def test_masks_of_ranges_that_lie_apart_divide_the_elements():
    ends = [0.0, 0.1, 0.1 + 1e-9, 0.5, 2 / 3, 1.0]
    masks = [rng.keep_mask(100_000, end - first, 0, "share", first=first) for first, end in itertools.pairwise(ends)]
    assert (np.sum(masks, axis=0) == 1).all()
    assert np.array_equal(masks[0], rng.keep_mask(100_000, 0.1, 0, "share"))
    assert masks[2].mean() == pytest.approx(0.4, abs=0.005)
    words = rng.words(100_000, 0, "share")
    assert np.array_equal(masks[4], words >= rng.threshold(2 / 3))


def test_bad_arguments():
    for keep, first in ((0.5, 0.6), (0.5, -0.1), (1.0, 1e-9)):
        with pytest.raises(ValueError, match="expected a range within"):
            rng.keep_mask(3, keep, 0, first=first)
    with pytest.raises(ValueError, match=r"keep 1\.5"):
        rng.keep_mask(3, 1.5, 0)
    with pytest.raises(ValueError, match="seed -1"):
        rng.philox(-1)


def test_uniform_stays_inside_its_bound():
    drawn = rng.uniform(100_000, 0.25, 0, "u")
    assert drawn.dtype == np.float32
    assert -0.25 <= drawn.min() < -0.2499
    assert 0.2499 < drawn.max() < 0.25

"""Which updates of a round count, and for how much, without a federation."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.errors import FederationError
from fedsrd.federation.screening import RECENT, History, NormBound, close_with_most, copy_of, shares

BOUND = NormBound(times=10.0, state=2.0, elements=400)
NAMES = ("a", "b", "c", "d", "e", "f")


def history(**norms):
    found = History()
    found.restore({name: [norm] * 3 for name, norm in norms.items()})
    return found


def out(norms, known=None, bound=BOUND):
    """Who is left out of a round with these norms by client."""
    found = bound.oversized(list(norms), list(norms.values()), known or History())
    return [list(norms)[place] for place in sorted(found)]


ABSURD = st.sampled_from([1e4, 1e6, 1e15, 1e30, 3e38])


@given(st.lists(st.floats(0.25, 2.0), max_size=5), st.integers(0, 5), ABSURD, st.booleans())
def test_an_absurd_update_among_fewer_than_it_takes_to_be_the_median_is_left_out(honest, place, size, before):
    """First round or later, alone or not; and no honest one with it, as long as the honest ones are most, or known."""
    norms = dict(zip(NAMES, honest, strict=False))
    found = dict([*list(norms.items())[:place], ("x", size), *list(norms.items())[place:]])
    known = history(**norms, x=1.0) if before else None
    assert out(found, known) == ["x"]


@given(st.floats(1e-3, 20.0), st.floats(1e-3, 20.0), st.integers(0, 9))
def test_who_sends_next_to_nothing_has_nobody_left_out(honest, new, rounds):
    """At the first round with two updates, and ever after, also of updates larger than the state: a client cannot make
    its own tiny norm the measure.
    """
    known = History()
    for _ in range(rounds):
        found = {"x": 1e-30, "a": honest}
        assert out(found, known) == []
        known.append(found)
    assert out({"new": new}, known) == []
    assert out({"x": 1e-30, "new": new}, known) == []


@given(st.lists(st.floats(0, 1e38), max_size=8))
def test_of_equal_updates_none_is_left_out_while_the_size_is_plausible(norms):
    for count in (1, 2, 5):
        for norm in (0.0, 1e-30, 1.0, 20.0, 200.0):
            assert out(dict.fromkeys(NAMES[:count], norm)) == []
    # Above a change of 10 in every element, however many agree.
    assert len(out(dict.fromkeys(NAMES, 1e30))) == len(NAMES)
    known = [norm for norm in norms if norm > 0]
    assert set(out(dict.fromkeys(NAMES, 0.0), history(**dict(zip(NAMES, known, strict=False))))) == set()


def test_updates_that_say_nothing_are_no_reference():
    assert out({"a": 0.0, "b": 0.0, "c": 1.0}) == []
    assert out({"a": 0.0, "b": 0.0, "c": 1e30}) == ["c"]
    assert out({"a": 0.0, "b": 1.0, "c": 1e30}) == ["c"]


def test_below_three_a_client_is_measured_by_itself_and_patience_does_not_help():
    known = history(a=5.0, b=0.5)
    assert out({"a": 45.0}, known) == []
    assert out({"a": 51.0}, known) == ["a"]
    assert out({"b": 6.0}, known) == ["b"]
    # Of a new one only what is within a change of 1 in every element counts.
    assert out({"new": 20.0}, history(b=0.5)) == []
    assert out({"new": 21.0}, history(b=0.5)) == ["new"]
    # A client whose accepted norms rise step by step stays within a hundred times the others'.
    known, size = history(a=1.0, x=1.0), 1.0
    for _ in range(400):
        if "x" not in out({"a": 1.0, "x": size * 9}, known):
            size *= 9
        known.append({"a": 1.0, "x": size})
    assert size <= 100


def test_a_majority_does_not_make_an_absurd_size_usual():
    known = history(a=1.0, b=1.0, c=1.0, d=1.0)
    assert out({"a": 1.0, "b": 1e30, "c": 1e30}, known) == ["b", "c"]
    assert out({"a": 1.0, "b": 1.0, "c": 1e30, "d": 1e30}, known) == ["c", "d"]
    assert out({"a": 1.0, "b": 1e30, "c": 1e30}) == ["b", "c"]


def test_the_history_is_bounded_and_comes_back_from_a_checkpoint():
    one, other = History(), History()
    for number in range(3 * RECENT):
        one.append({"a": float(number), "b": 0.0})
    assert one.contents() == {"a": [float(number) for number in range(2 * RECENT, 3 * RECENT)]}
    other.restore(one.contents())
    assert other.usual() == one.usual() == {"a": statistics.median(one.contents()["a"])}


def test_a_copy_is_known_by_its_bytes_and_nothing_is_no_copy():
    seen = {}
    assert copy_of("a", b"x", 1.0, seen) is None
    assert copy_of("b", b"x", 1.0, seen) == "a"
    assert copy_of("c", b"y", 1.0, seen) is None
    assert copy_of("d", b"", 0.0, seen) is None
    assert copy_of("e", b"", 0.0, seen) is None


# Shares.


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_shares_against_the_plain_reading(counts, most):
    found = shares(counts, most)
    allowed = max(most, 1 / len(counts))
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert all(0 < share <= allowed * (1 + 1e-12) for share in found)
    free = [place for place, share in enumerate(found) if share < allowed * (1 - 1e-9)]
    # Those below the cap are in proportion to each other, and nobody at the cap would be below it in proportion.
    rates = [found[place] / counts[place] for place in free]
    assert all(rate == pytest.approx(rates[0], rel=1e-9) for rate in rates)
    if rates:
        assert all(counts[p] * rates[0] >= allowed * (1 - 1e-9) for p in range(len(counts)) if p not in free)
    # More examples never mean a smaller share.
    assert [s for _, s in sorted(zip(counts, found, strict=True))] == sorted(found)
    if max(counts) / sum(counts) <= allowed:
        assert found == [count / sum(counts) for count in counts]


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([7], 0.5, [1.0]),
        ([10**9, 1], 0.5, [0.5, 0.5]),
        ([1, 3], 1.0, [0.25, 0.75]),
        ([6, 3, 1], 0.5, [0.5, 0.375, 0.125]),
        ([100, 99, 1], 0.4, [0.4, 0.4, 0.2]),
        ([5, 1, 1], 0.1, [1 / 3] * 3),
    ],
)
def test_shares_of_a_few(counts, most, expected):
    assert shares(counts, most) == pytest.approx(expected)


# Closing with most.


@given(st.lists(st.floats(0, 100), min_size=1, max_size=7), st.sets(st.integers(0, 6), max_size=4))
def test_whoever_stands_in_the_way_is_left_out_and_nobody_else(norms, wrong):
    tried = []

    def close(places):
        tried.append(list(places))
        assert places == sorted(places)
        if wrong & set(places):
            raise FederationError("no")
        return tuple(places)

    closed, kept, left_out = close_with_most(norms, close)
    good = [place for place in range(len(norms)) if place not in wrong]
    assert kept == good
    assert closed == (tuple(good) or None)
    assert set(left_out) == set(range(len(norms))) - set(kept)
    assert all(reason == "the round cannot close with it: no" for reason in left_out.values())
    assert len(tried) <= 2 * len(norms)
    if len(good) == len(norms):
        assert tried == [good]


def test_the_one_offender_is_found_at_the_first_guess_where_it_is_the_largest():
    tried = []

    def close(places):
        tried.append(places)
        if 2 in places:
            raise FederationError("no")
        return places

    assert close_with_most([1.0, 2.0, 1e30, 3.0], close)[1] == [0, 1, 3]
    assert len(tried) == 2

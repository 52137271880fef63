"""Whoever drops whenever: the sum of the survivors' integers, bit for bit, or one error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure import Run, session_of

from fedsrd.errors import SecureAggregationError, TooFewError
from fedsrd.privacy.packed import unpack
from fedsrd.privacy.secure.graph import degree_and_threshold


@st.composite
def courses(draw, least=2, most=12, thresholds=None):
    """A session, how many steps each client goes before it drops (5: to the end), and everybody's values."""
    clients = draw(st.integers(least, most))
    threshold = draw(thresholds(clients) if thresholds else st.integers(clients // 2 + 1, clients))
    threshold = max(2, threshold)
    session = session_of(clients, threshold, draw(st.integers(1, 32)), draw(st.integers(1, 70)))
    # Most stay: with steps drawn evenly nearly every session fails.
    step = st.sampled_from([5, 5, 5, 5, 5, 5, 0, 1, 2, 3, 4])
    steps = draw(st.lists(step, min_size=clients, max_size=clients))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    whole = 1 << session.layout.bits
    values = {name: random.integers(0, whole, session.layout.count) for name in session.clients}
    return session, dict(zip(session.clients, steps, strict=True)), values


def total_of(run, steps, values):
    """The session's total, and whose values should be in it."""

    def going(step):
        return [name for name in run.session.clients if steps[name] >= step]

    run.keys(going(1))
    run.shares(going(2))
    run.masked({name: values[name] for name in going(3)})
    if run.signed:
        run.confirmed(going(4))
        return run.revealed(going(5)), going(3)
    return run.revealed(going(5)), going(3)


def check(session, steps, values, signed, restarts):
    run = Run(session, signed, restarts)
    fewest = min(sum(step >= phase for step in steps.values()) for phase in range(1, 6))
    complete = degree_and_threshold(
        max(sum(step >= 1 for step in steps.values()), session.threshold), session.threshold
    )[1]
    if fewest < session.threshold:
        with pytest.raises(TooFewError) as failed:
            total_of(run, steps, values)
        assert len(failed.value.left) < session.threshold
        return
    try:
        total, survivors = total_of(run, steps, values)
    except SecureAggregationError:
        # A neighbourhood can be too small while all together are enough; all pairs cannot.
        assert complete != session.threshold
        return
    expected = sum(values[name] for name in survivors) % (1 << session.layout.bits)
    assert np.array_equal(unpack(total, session.layout, centred=False), expected)
    assert run.server.total() is total
    assert run.server.refused == {}


@settings(max_examples=60)
@given(courses(), st.booleans())
def test_the_sum_or_too_few(course, signed):
    check(*course, signed, restarts=False)


@settings(max_examples=25)
@given(courses(most=6), st.booleans())
def test_everybody_restarts_between_any_two_steps(course, signed):
    check(*course, signed, restarts=True)


@settings(max_examples=4)
@given(courses(least=40, most=40, thresholds=lambda clients: st.integers(22, 36)), st.booleans())
def test_the_sum_of_a_crowd_with_neighbourhoods(course, signed):
    check(*course, signed, restarts=False)


@pytest.mark.parametrize("dropped", [0, 1, 4])
def test_forty_with_neighbourhoods(dropped):
    """As many as may drop after they shared their secrets."""
    session = session_of(40, 36, 7, 30)
    degree, threshold = degree_and_threshold(40, 36)
    assert degree < 39
    assert threshold < 36
    values = {name: np.full(30, at - 20) for at, name in enumerate(session.clients)}
    steps = {name: 2 if at < dropped else 5 for at, name in enumerate(session.clients)}
    run = Run(session)
    total, survivors = total_of(run, steps, values)
    assert len(survivors) == 40 - dropped
    expected = sum(values[name] for name in survivors)
    assert unpack(total, session.layout, False).tolist() == (expected % 128).tolist()


@pytest.mark.parametrize(
    ("phase", "step"), [("keys", 0), ("shares", 1), ("masked", 2), ("confirmations", 3), ("reveal", 4)]
)
def test_too_few_says_who_is_left_and_why(phase, step):
    session = session_of(3, 3)
    values = {name: np.zeros(session.layout.count, int) for name in session.clients}
    steps = dict.fromkeys(session.clients, 5) | {"site 1": step}
    with pytest.raises(TooFewError, match=rf"{phase}: 2 of at least 3.*nothing was learnt") as error:
        total_of(Run(session), steps, values)
    assert error.value.left == ("site 0", "site 2")
    assert error.value.phase == phase


def test_late_answers_mend_a_round_that_had_too_few():
    session = session_of(4, 3)
    run = Run(session, signed=False)
    run.keys()
    run.shares()
    run.masked({name: np.ones(session.layout.count, int) for name in session.clients})
    with pytest.raises(TooFewError):
        run.revealed(("site 0", "site 1"))
    assert unpack(run.revealed(("site 3",)), session.layout).tolist() == [4] * session.layout.count

"""Neighbourhoods: what must hold whoever drops and whoever colludes, against brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.privacy.secure.graph import COLLUDING, FAILURE_BITS, Graph, degree_and_threshold, graph


def names_of(count):
    return tuple(f"c{i:03}" for i in range(count))


def opened_apart(circle, colluding, dropped):
    """Whether the masks among honest survivors fall into parts of which a server can open one but not all.

    The dense reading: who can be opened has `threshold` shares among the colluding and the honest survivors; a part of
    the honest survivors that masks join is apart if it is not all of them and each in it can be opened.
    """
    honest = [name for name in circle.order if name not in colluding and name not in dropped]
    shares = {name: sum(holder in honest or holder in colluding for holder in circle.holders(name)) for name in honest}
    left = set(honest)
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            one = edge.pop()
            part.add(one)
            near = set(circle.holders(one)) & left
            edge |= near
            left -= near
        if len(part) < len(honest) and all(shares[name] >= circle.threshold for name in part):
            return True
    return False


@pytest.mark.parametrize(("clients", "degree", "colluding"), [(10, 4, 0), (10, 6, 1), (11, 6, 1), (10, 8, 2)])
def test_every_way_to_drop_and_to_collude_leaves_one_ring(clients, degree, colluding):
    names = names_of(clients)
    threshold = degree // 2 + colluding + 2
    circle = Graph(names, degree, threshold)
    for bad in itertools.combinations(names[1:], colluding):
        for gone in itertools.product((False, True), repeat=clients):
            dropped = {name for name, drops in zip(names, gone, strict=True) if drops}
            assert not opened_apart(circle, set(bad), dropped)


def test_one_share_less_would_not_do():
    """The bound is no larger than it must be: one less, and a ring can be cut where it should not."""
    names = names_of(10)
    circle = Graph(names, 4, 3)
    assert opened_apart(circle, set(), {names[3], names[4], names[8], names[9]})


@given(st.integers(2, 200), st.data())
def test_degree_and_threshold_are_what_they_say(clients, data):
    threshold = data.draw(st.integers(max(2, clients // 2 + 1), clients))
    degree, shares = degree_and_threshold(clients, threshold)
    assert 1 <= degree <= clients - 1
    if degree == clients - 1:
        assert shares == threshold
        return
    assert clients >= 32
    assert degree % 2 == 0
    assert degree // 2 + clients // COLLUDING + 2 <= shares <= degree
    # The tail in plain fractions: of `clients - 1` others `threshold - 1` stay, `degree` are neighbours.
    ways = sum(math.comb(threshold - 1, kept) * math.comb(clients - threshold, degree - kept) for kept in range(shares))
    assert clients * ways << FAILURE_BITS <= math.comb(clients - 1, degree)


def test_the_table_of_the_documentation():
    table = {
        2 / 3: [(30, 20), (58, 37), (112, 70), (224, 139), (848, 528)],
        3 / 4: [(26, 18), (48, 32), (92, 60), (180, 117), (602, 405)],
        4 / 5: [(22, 16), (40, 28), (78, 53), (152, 103), (494, 351)],
        9 / 10: [(16, 13), (28, 22), (52, 40), (104, 79), (342, 275)],
    }
    for share, row in table.items():
        for clients, expected in zip((32, 64, 128, 256, 1024), row, strict=True):
            assert degree_and_threshold(clients, math.ceil(share * clients - 1e-9)) == expected


@given(st.integers(1, 120), st.binary(min_size=32, max_size=32))
def test_neighbours_are_mutual_and_as_many_as_said(clients, context):
    names = names_of(clients)
    circle = graph(names, max(1, clients * 4 // 5), context)
    assert sorted(circle.order) == sorted(names)
    holders = {name: circle.holders(name) for name in names}
    for name, those in holders.items():
        assert list(those) == sorted(set(those))
        assert name in those
        assert len(those) == circle.degree + 1
        assert all(name in holders[other] for other in those)


def test_the_order_follows_from_all_keys_alone():
    names = names_of(60)
    one = graph(names, 50, b"a")
    assert graph(names[::-1], 50, b"a") == one
    assert graph(names, 50, b"b").order != one.order


def test_neighbourhoods_keep_enough_when_as_many_as_may_drop_at_random():
    circle = graph(names_of(100), 75, b"")
    assert circle.degree < 99
    at = {name: index for index, name in enumerate(circle.order)}
    near = np.array([[at[holder] for holder in circle.holders(name)] for name in circle.order])
    random = np.random.default_rng(0)
    stays = np.ones((3000, 100), bool)
    stays[:, :25] = False
    kept = random.permuted(stays, axis=1)[:, near].sum(axis=2)
    assert kept.min() >= circle.threshold

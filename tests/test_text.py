"""Text from others: bounded, on one line, and without a character that acts; wherever it enters."""

import json
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Failure
from fedsrd.federation.remote import header
from fedsrd.flower.records import reason_of
from fedsrd.text import LIMIT, foreign, printable

ACTS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
LONG = "\x1b[2J" + "long \n" * 500_000
ACTING = st.sampled_from("\n\r\t\v\f\x00\x07\x1b\x7f\x85\x9b\xad\u200b\u2028\u2029\u202e\u2066\ud800")
SPOILED = st.text(st.one_of(st.characters(), ACTING), max_size=2 * LIMIT + 10)


def acts(text, allowed=""):
    return {character for character in text if unicodedata.category(character) in ACTS} - set(allowed)


@given(SPOILED, st.integers(2, 2 * LIMIT))
def test_a_foreign_text_is_one_short_line_that_does_nothing(text, limit):
    shown = foreign(text, limit)
    assert not acts(shown)
    assert len(shown) <= limit
    assert foreign(shown, limit) == shown
    shown.encode()


@given(SPOILED)
def test_a_printable_text_keeps_its_lines(text):
    shown = printable(text)
    assert not acts(shown, "\n\t")
    assert len(shown) == len(text)
    assert printable(shown) == shown
    assert all(one == other for one, other in zip(text, shown, strict=True) if one.isprintable())


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=LIMIT))
def test_an_honest_text_stays_as_it_is(text):
    assert foreign(text) == printable(text) == text


def reply(reason):
    return SimpleNamespace(error=SimpleNamespace(code=0, reason=reason), has_error=lambda: True)


def said(kind, **fields):
    """What the server reads out of a client's own JSON."""
    text = json.dumps({"kind": kind, "name": "a", "held": 1, "failure": LONG, **fields})
    return header.unpack(header.Envelope(text), header.TrainReply if kind == "train-reply" else header.SyncReply)[0]


@pytest.mark.parametrize(
    "enter",
    [
        lambda: Failure("a", 1, LONG).reason,
        lambda: said("train-reply", round=1).failure,
        lambda: said("sync-reply", digest="").failure,
        lambda: reason_of(reply(LONG)),
        lambda: reason_of(reply(f"<class 'ValueError'>:<'{LONG}'>")),
        lambda: reason_of(reply(f"<class 'fedsrd.errors.DataError'>:<'{LONG}'>")),
        lambda: header.kind_of(header.Envelope(json.dumps({"kind": LONG[: 1 << 20]}))),
    ],
)
def test_wherever_it_enters_it_is_cut_and_plain(enter):
    found = enter()
    assert 50 < len(found) <= LIMIT
    assert not acts(found)
    assert "long long" in found


def test_a_headers_own_keys_are_no_way_in():
    with pytest.raises(PayloadError) as caught:
        header.unpack(header.Envelope(json.dumps({LONG[: 1 << 20]: 1})), header.HelloReply)
    assert len(str(caught.value)) <= LIMIT
    assert not acts(str(caught.value))

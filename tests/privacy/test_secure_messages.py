"""Bytes that are no message, parameters that may not be."""

import hashlib
import json

import pytest
from secure import ready, session_of

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy.secure import Client, Confirmation, Inbox, Keys, Reveal, Server, Session, Shares, crypto
from fedsrd.privacy.secure.graph import graph
from fedsrd.privacy.secure.messages import context_of

GOLDEN = [
    "719361979780",
    "69ed0d54471e",
    "48e6ecaadf58",
    "0e744bfc4ea1",
    "e50612c26a34",
    "48ad5e6a707f",
    "a05f181926d0",
    "f634752025f1",
    "9e388fbc6a0a",
]


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": ("a",)},
        {"clients": ("a", "a")},
        {"clients": ("a", "")},
        {"threshold": 1},
        {"threshold": 4},
        {"clients": ("a", "b", "c", "d"), "threshold": 2},
        {"round": -1},
        {"nonce": "0" * 31},
        {"nonce": "0" * 32 + "\n"},
        {"nonce": "G" * 32},
        {"layout": {"bits": 4, "count": 0}},
        {"layout": {"bits": 64, "count": 1}},
        {"federation": "x" * 201},
        {"more": 1},
    ],
)
def test_a_session_that_may_not_be(changes):
    right = session_of(3, 2).model_dump(mode="json")
    assert Session.read(session_of(3, 2).write()) == session_of(3, 2)
    with pytest.raises(SecureAggregationError, match="session of secure aggregation"):
        Session.read(json.dumps(right | changes))


def test_sessions_differ_by_every_parameter():
    one = session_of(4, 3)
    others = [
        {"federation": "walk"},
        {"round": 2},
        {"nonce": "f" * 32},
        {"clients": (*one.clients[:3], "x")},
        {"threshold": 4},
        {"layout": {"bits": 5, "count": 50}},
        {"layout": {"bits": 4, "count": 51}},
    ]
    digests = {Session.model_validate(one.model_dump() | other).digest() for other in ({}, *others)}
    assert len(digests) == len(others) + 1
    assert one.model_copy(update={"clients": one.clients}).digest() == one.digest()


@pytest.mark.parametrize("kind", [Session, Keys, Shares, Inbox, Confirmation, Reveal])
@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"null", b"[]", b"{}", b'{"name": 1}', b"[" * 100000, b'{"name":"\\ud800"}']
)
def test_bytes_that_are_no_message(kind, raw):
    with pytest.raises(SecureAggregationError, match=f"{kind.__name__.lower()} of secure aggregation"):
        kind.read(raw)


def test_bytes_that_are_no_client_or_server():
    run = ready()
    for raw in (b"", b"{}", run.clients["site 0"].to_bytes()[:-5]):
        with pytest.raises(SecureAggregationError):
            Client.from_bytes(raw)
        with pytest.raises(SecureAggregationError):
            Server.from_bytes(raw)
    with pytest.raises(SecureAggregationError, match="accumulator"):
        Server.from_bytes(run.server.to_bytes()[:-1])


def test_a_missing_library_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "Crypto.Protocol.SecretSharing", None)
    with pytest.raises(SecureAggregationError, match=r"pip install \"fedsrd\[secure\]\""):
        Client.start(session_of(3, 2), "site 0", None)
    with pytest.raises(SecureAggregationError, match="pip install"):
        Server(session_of(3, 2))


def test_what_all_versions_derive_alike():
    """Sites of different releases meet in a session: a change of any of these is a new version of the protocol."""
    session = session_of(40, 36)
    digest = session.digest()
    mine, theirs = (crypto.private_key(seed * 16, "mask-key", digest) for seed in (b"a", b"b"))
    public = [crypto.public_bytes(key) for key in (mine, theirs)]
    roster = {name: Keys(name=name, seal_key=public[0], mask_key=public[1]) for name in session.clients}
    context = context_of(digest, roster)
    pair = crypto.pair_mask_key(mine, context, "site 0", "site 1", public[1])
    assert pair == crypto.pair_mask_key(theirs, context, "site 1", "site 0", public[0])
    words = session.layout.zeros()
    crypto.mask_(words, session.layout, [crypto.self_mask_key(b"c" * 16, context, "site 0")], [pair])
    found = [
        digest,
        context,
        pair,
        crypto.derive(b"s" * 32, "seal", context, "site 0", "site 1"),
        crypto.commitment(b"c" * 16, digest, "site 0"),
        hashlib.sha256(words.astype("<u8").tobytes()).digest(),
        hashlib.sha256("".join(graph(session.clients, 36, context).order).encode()).digest(),
        hashlib.sha256(roster["site 0"].said(digest)).digest(),
        hashlib.sha256(Confirmation.said(context, "site 0", session.clients, session.clients[:36])).digest(),
    ]
    assert [one[:6].hex() for one in found] == GOLDEN

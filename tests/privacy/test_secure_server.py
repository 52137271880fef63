"""What clients that lie try, and what the server does about it."""

import os

import numpy as np
import pytest
from secure import Run, forged, keyed, ready, session_of, signer, verify

from fedsrd.errors import SecureAggregationError, TooFewError
from fedsrd.privacy.packed import pack, unpack
from fedsrd.privacy.secure import Inbox, Server


def test_messages_under_anothers_name():
    run = Run(session_of(4, 3))
    answers = run.started()
    answers["site 1"] = answers["site 0"]
    answers["mallory"] = answers["site 0"].model_copy(update={"name": "mallory"})
    roster = run.server.keys(answers)
    assert [keys.name for keys in roster] == ["site 0", "site 2", "site 3"]
    assert run.server.refused == {"site 1": "spoke as site 0", "mallory": "not of this phase"}


def test_keys_that_no_client_would_take_are_left_out():
    run = Run(session_of(4, 3))
    answers = run.started()
    answers["site 1"] = forged(answers["site 1"], mask_key=answers["site 0"].mask_key)
    assert len(run.server.keys(answers)) == 3
    assert "already" in run.server.refused["site 1"]
    for field in ("seal_key", "mask_key"):
        answers = run.started()
        answers["site 2"] = forged(answers["site 2"], **{field: bytes(32)})
        server = Server(run.session, verify)
        assert len(server.keys(answers)) == 3
        assert "no point" in server.refused["site 2"]
    answers = run.started()
    answers["site 3"] = answers["site 3"].model_copy(update={"signature": "x"})
    server = Server(run.session, verify)
    server.keys(answers)
    assert "not signed" in server.refused["site 3"]


def test_shares_for_others_than_the_neighbours():
    run = keyed()
    answers = run.shared(run.session.clients)
    sealed = answers["site 1"].sealed
    answers["site 1"] = answers["site 1"].model_copy(update={"sealed": {**sealed, "mallory": sealed["site 0"]}})
    inboxes = run.server.shares(answers)
    assert set(inboxes) == {"site 0", "site 2", "site 3"}
    assert "neighbours" in run.server.refused["site 1"]


@pytest.mark.parametrize("words", [b"", bytes(31), bytes(33), bytes(31) + b"\xff", np.zeros(5, np.uint64)])
def test_a_masked_input_that_is_none(words):
    run = Run(session_of(4, 3, bits=3, count=80))
    run.keys()
    run.shares()
    before = run.server.to_bytes().partition(b"\n")[2]
    assert not run.server.masked("site 0", words)
    assert run.server.to_bytes().partition(b"\n")[2] == before
    assert "a masked input of" in run.server.refused["site 0"]


def test_a_second_masked_input_and_one_of_a_stranger():
    run = keyed()
    run.shares()
    words = pack(np.ones(50, int), run.session.layout)
    run.clients["site 0"].mask(run.inboxes["site 0"], words)
    assert run.server.masked("site 0", words)
    assert not run.server.masked("site 0", words)
    assert not run.server.masked("mallory", words)
    assert run.server.refused == {"site 0": "a second masked input", "mallory": "not of this phase"}


def test_a_confirmation_that_is_not_signed():
    run = ready(dropped=0)
    said = {name: run.clients[name].confirm(run.survivors, signer(name)) for name in run.survivors}
    said["site 2"] = said["site 2"].model_copy(update={"signature": said["site 1"].signature})
    assert len(run.server.confirmations(said)) == 3
    assert "not signed" in run.server.refused["site 2"]


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_wrong_share_is_found_and_its_holder_named(dropped):
    run = ready(clients=5, threshold=3, dropped=dropped, signed=False)
    answers = run.answers()
    liar = answers["site 0"]
    field = "key_shares" if dropped else "self_shares"
    owner = "site 4"
    wrong = {**getattr(liar, field), owner: os.urandom(16)}
    answers["site 0"] = liar.model_copy(update={field: wrong})
    run.server.reveal(answers)
    assert unpack(run.server.total(), run.session.layout).tolist() == [5 - dropped] * 50
    assert run.server.refused == {"site 0": "revealed a wrong share"}


def test_a_wrong_share_that_nobody_can_make_up_for():
    run = ready(clients=4, threshold=3, dropped=1, signed=False)
    answers = run.answers()
    answers["site 0"] = answers["site 0"].model_copy(update={"key_shares": {"site 3": bytes(16)}})
    run.server.reveal(answers)
    with pytest.raises(SecureAggregationError, match=r"secret of site 3 does not follow.*was not learnt"):
        run.server.total()
    assert run.server.phase == "reveal"


def test_a_commitment_to_another_seed():
    run = keyed()
    answers = run.shared(run.session.clients)
    answers["site 2"] = answers["site 2"].model_copy(update={"commitment": bytes(32)})
    run.inboxes = run.server.shares(answers)
    run.masked({name: np.ones(50, int) for name in run.session.clients})
    run.confirmed()
    with pytest.raises(SecureAggregationError, match="secret of site 2"):
        run.revealed()
    assert run.server.refused == {"site 2": "its secret does not follow from the shares that came"}


def test_shares_that_nobody_asked_for():
    """Both shares of one client, from a client that lies for the server's sake: the server does not take them."""
    run = ready(clients=5, threshold=3, dropped=1, signed=False)
    answers = run.answers()
    liar = answers["site 0"]
    answers["site 0"] = liar.model_copy(update={"key_shares": {**liar.key_shares, "site 1": bytes(16)}})
    answers["site 1"] = answers["site 1"].model_copy(update={"self_shares": {"site 4": bytes(16)}})
    with pytest.raises(TooFewError, match="2 of at least 3"):
        run.server.reveal(answers)
    assert set(run.server.refused) == {"site 0", "site 1"}


def test_steps_have_an_order():
    run = Run(session_of(3, 2))
    for step in (
        lambda: run.server.shares({}),
        lambda: run.server.masked("site 0", b""),
        run.server.survivors,
        lambda: run.server.confirmations({}),
        lambda: run.server.reveal({}),
        run.server.total,
    ):
        with pytest.raises(SecureAggregationError, match="waits for keys"):
            step()
    run.keys()
    client = run.clients["site 0"]
    with pytest.raises(SecureAggregationError, match="is started"):
        client.mask(Inbox(participants=run.session.clients, sealed={}), run.session.layout.zeros())
    with pytest.raises(SecureAggregationError, match="is started"):
        client.confirm(run.session.clients, signer("site 0"))
    with pytest.raises(SecureAggregationError, match="keys"):
        run.server.keys({})

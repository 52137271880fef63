"""What a server that deviates tries, and what a client does about it."""

import os

import numpy as np
import pytest
from secure import Run, forged, keyed, ready, session_of, signer, verify

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy.packed import unpack
from fedsrd.privacy.secure import Client, Confirmation, Inbox, Keys


def replaced(roster, name, keys):
    return tuple(keys if one.name == name else one for one in roster)


def refuses(client, step, match):
    """The step fails, and the session is over for this client: nothing more is to be had from it."""
    with pytest.raises(SecureAggregationError, match=match):
        step()
    assert client.phase == "ended"
    again = Client.from_bytes(client.to_bytes())
    for more in (
        lambda: again.share((), verify),
        lambda: again.mask(Inbox(participants=(), sealed={}), np.zeros(4, np.uint64)),
        lambda: again.confirm((), signer("site 0")),
        lambda: again.reveal((), (), verify),
    ):
        with pytest.raises(SecureAggregationError):
            more()


def test_a_server_in_the_middle_puts_its_own_keys():
    run = keyed()
    mine = Keys(name="site 1", seal_key=os.urandom(32), mask_key=os.urandom(32), signature=run.roster[1].signature)
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(replaced(run.roster, "site 1", mine), verify), "site 1 are not signed")


def test_the_keys_of_two_sites_are_swapped():
    run = keyed()
    one, two = run.roster[1], run.roster[2]
    swapped = (
        run.roster[0],
        two.model_copy(update={"name": one.name}),
        one.model_copy(update={"name": two.name}),
        run.roster[3],
    )
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(swapped, verify), "not signed")


@pytest.mark.parametrize("other", [{"number": 2}, {"nonce": "1" * 32}])
def test_keys_of_another_session_are_replayed(other):
    run, before = keyed(), keyed(**other)
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(replaced(run.roster, "site 1", before.roster[1]), verify), "not signed")


@pytest.mark.parametrize("field", ["seal_key", "mask_key"])
def test_one_site_takes_anothers_key(field):
    run = keyed()
    stolen = forged(run.roster[1], **{field: getattr(run.roster[2], field)})
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(replaced(run.roster, "site 1", stolen), verify), "twice")


def test_its_own_entry_is_changed_or_missing():
    run = keyed()
    changed = forged(run.roster[0], mask_key=os.urandom(32))
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(replaced(run.roster, "site 0", changed), verify), "own keys")
    client = run.clients["site 1"]
    refuses(client, lambda: client.share([one for one in run.roster if one.name != "site 1"], verify), "own keys")


def test_a_roster_below_the_threshold_or_with_strangers_or_doubles():
    run = keyed()
    client = run.clients["site 0"]
    refuses(client, lambda: client.share(run.roster[:2], verify), "2 clients: expected at least 3")
    client = run.clients["site 1"]
    stranger = run.roster[3].model_copy(update={"name": "mallory"})
    refuses(client, lambda: client.share((*run.roster[:3], stranger), verify), "mallory, who is not in the session")
    client = run.clients["site 2"]
    refuses(client, lambda: client.share((*run.roster, run.roster[3]), verify), "a client twice")


def test_a_public_key_that_gives_zero():
    """A point of small order: the secret that two share would be known to all."""
    run = keyed()
    client = run.clients["site 0"]
    weak = forged(run.roster[1], seal_key=bytes(32))
    refuses(client, lambda: client.share(replaced(run.roster, "site 1", weak), verify), "site 1 is none")
    client = run.clients["site 2"]
    weak = forged(run.roster[1], mask_key=(1).to_bytes(32, "little"))
    roster = replaced(run.roster, "site 1", weak)
    run.roster = roster
    client.share(roster, verify)
    words = run.session.layout.zeros()
    inbox = Inbox(participants=run.session.clients, sealed=dict.fromkeys(("site 0", "site 1", "site 3"), bytes(60)))
    refuses(client, lambda: client.mask(inbox, words), "site 1 is none")
    assert not words.any()


def test_one_roster_a_session():
    run = keyed()
    client = run.clients["site 0"]
    client.share(run.roster, verify)
    with pytest.raises(SecureAggregationError, match="is shared: expected started"):
        client.share(run.roster, verify)


def test_who_checks_signs():
    session = session_of(2, 2)
    client, keys = Client.start(session, "site 0", None)
    refuses(client, lambda: client.share((keys, keys), verify), "started without a signature")


def test_two_rosters_unmask_nothing():
    """Clients that were told of different keys do not open each other's shares."""
    run = Run(session_of(3, 2), signed=False)
    run.keys()
    run.clients["site 2"], keys = Client.start(run.session, "site 2", None)
    theirs = (*run.roster[:2], keys)
    inboxes = {}
    shares = {name: run.clients[name].share(run.roster, None) for name in ("site 0", "site 1")}
    shares["site 2"] = run.clients["site 2"].share(theirs, None)
    for name in run.session.clients:
        sealed = {other: shares[other].sealed[name] for other in run.session.clients if other != name}
        inboxes[name] = Inbox(participants=run.session.clients, sealed=sealed)
        run.clients[name].mask(inboxes[name], run.session.layout.zeros())
    assert run.clients["site 0"].reveal(run.session.clients).unreadable == ("site 2",)
    assert run.clients["site 2"].reveal(run.session.clients).unreadable == ("site 0", "site 1")


def test_one_masked_input_a_session():
    run = ready(dropped=0)
    client = Client.from_bytes(run.clients["site 0"].to_bytes())
    words = run.session.layout.zeros()
    with pytest.raises(SecureAggregationError, match="masked already"):
        client.mask(run.inboxes["site 0"], words)
    assert not words.any()


@pytest.mark.parametrize(
    ("participants", "match"),
    [
        (("site 0", "site 1"), "2 participants: expected at least 3"),
        (("site 1", "site 2", "site 3"), "not among the participants"),
        (("site 0", "site 1", "site 1", "site 2"), "each once"),
        (("site 0", "site 1", "site 2", "mallory"), "each once"),
        (("site 0", "site 1", "site 2"), "sealed shares are not those"),
    ],
)
def test_an_inbox_that_does_not_fit(participants, match):
    run = keyed()
    inbox = run.shares()["site 0"]
    client, words = run.clients["site 0"], run.session.layout.zeros()
    refuses(client, lambda: client.mask(inbox.model_copy(update={"participants": participants}), words), match)
    assert not words.any()


@pytest.mark.parametrize("words", [np.zeros(3, np.uint64), np.zeros(4, np.int64), np.full(4, 2**63, np.uint64)])
def test_words_of_another_layout_are_not_masked(words):
    run = Run(session_of(4, 3, bits=3, count=80))
    run.keys()
    inbox = run.shares()["site 0"]
    before = words.copy()
    with pytest.raises(SecureAggregationError, match="expected 4 words of 3-bit fields"):
        run.clients["site 0"].mask(inbox, words)
    assert np.array_equal(words, before)
    run.clients["site 0"].mask(inbox, np.zeros(4, np.uint64))


def test_sealed_shares_that_do_not_open_or_are_another_senders():
    run = keyed()
    inbox = run.shares()["site 0"]
    sealed = dict(inbox.sealed)
    sealed["site 1"] = sealed["site 1"][:-1] + bytes([sealed["site 1"][-1] ^ 1])
    sealed["site 2"] = sealed["site 3"]
    run.inboxes["site 0"] = inbox.model_copy(update={"sealed": sealed})
    run.masked({name: np.ones(50, int) for name in run.session.clients})
    run.confirmed()
    answers = run.answers()
    assert answers["site 0"].unreadable == ("site 1", "site 2")
    assert set(answers["site 0"].self_shares) == {"site 0", "site 3"}
    assert unpack(run.revealed(), run.session.layout).tolist() == [4] * 50
    assert run.server.refused["site 1"] == "its sealed shares did not open, says site 0"


def test_one_set_of_survivors_is_confirmed():
    run = ready(dropped=0)
    client = run.clients["site 0"]
    first = client.confirm(run.session.clients, signer("site 0"))
    client = Client.from_bytes(client.to_bytes())
    assert client.confirm(run.session.clients[::-1], signer("site 0")) == first
    with pytest.raises(SecureAggregationError, match="one set a session"):
        client.confirm(run.session.clients[:3], signer("site 0"))


@pytest.mark.parametrize(
    ("survivors", "match"),
    [
        (("site 0", "site 1"), "2 survivors: expected at least 3"),
        (("site 1", "site 2", "site 3"), "not among the survivors"),
        (("site 0", "site 1", "site 2", "mallory"), "each once"),
        (("site 0", "site 0", "site 1", "site 2"), "each once"),
        ((), "not among the survivors"),
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_survivors_that_may_not_be(survivors, match, signed):
    run = ready(dropped=0, signed=signed)
    client = run.clients["site 0"]
    refuses(
        client,
        lambda: client.confirm(survivors, signer("site 0")) if signed else client.reveal(survivors),
        match,
    )


def test_one_answer_a_session():
    run = ready(signed=False)
    client = run.clients["site 0"]
    first = client.reveal(run.survivors)
    client = Client.from_bytes(client.to_bytes())
    assert client.reveal(run.survivors) == first
    with pytest.raises(SecureAggregationError, match="another set of survivors"):
        client.reveal(run.session.clients)
    assert client.reveal(run.survivors) == first


def test_never_both_shares_of_a_client():
    run = ready(clients=5, dropped=2, signed=False)
    for name in run.survivors:
        answer = run.clients[name].reveal(run.survivors)
        assert set(answer.self_shares) == set(run.survivors)
        assert set(answer.key_shares) == {"site 3", "site 4"}


def test_nothing_is_revealed_without_confirmations_of_this_very_set():
    run = ready(clients=5, threshold=3, dropped=0)
    everybody, fewer = run.session.clients, run.session.clients[:4]
    client = run.clients["site 0"]
    with pytest.raises(SecureAggregationError, match="nothing was confirmed"):
        client.reveal(everybody, (), verify)
    own = client.confirm(everybody, signer("site 0"))
    others = [run.clients[name].confirm(everybody, signer(name)) for name in everybody[1:3]]
    another = [run.clients[name].confirm(fewer, signer(name)) for name in fewer[3:]]
    for some in (
        (),
        (own, others[0]),
        (own, own, own),
        (own, others[0], *another),
        (own, others[0], others[1].model_copy(update={"name": "site 3"})),
        (own, others[0], Confirmation(name="site 3", signature="")),
        (own, others[0], Confirmation(name="mallory", signature=signer("mallory")(b""))),
    ):
        with pytest.raises(SecureAggregationError, match="valid confirmations of these survivors: expected at least 3"):
            client.reveal(everybody, some, verify)
    with pytest.raises(SecureAggregationError, match="means to check"):
        client.reveal(everybody, (own, *others), None)
    assert client.reveal(everybody, (own, *others), verify).self_shares.keys() == set(everybody)


def test_confirmations_of_two_sets_cannot_both_be_enough():
    """A server tells half of the clients that one dropped; nobody reveals."""
    run = ready(clients=4, threshold=3, dropped=0)
    everybody, fewer = run.session.clients, run.session.clients[:3]
    one = [run.clients[name].confirm(everybody, signer(name)) for name in ("site 0", "site 3")]
    two = [run.clients[name].confirm(fewer, signer(name)) for name in ("site 1", "site 2")]
    for name, survivors in (("site 0", everybody), ("site 3", everybody), ("site 1", fewer), ("site 2", fewer)):
        with pytest.raises(SecureAggregationError, match="expected at least 3"):
            run.clients[name].reveal(survivors, [*one, *two], verify)


def test_confirmations_of_another_session_are_worth_nothing():
    run, before = ready(dropped=0), ready(dropped=0, nonce="1" * 32)
    for name in run.session.clients:
        run.clients[name].confirm(run.survivors, signer(name))
    with pytest.raises(SecureAggregationError, match="0 valid"):
        run.clients["site 0"].reveal(run.survivors, before.confirmed(), verify)


def test_a_session_is_for_those_in_it():
    with pytest.raises(SecureAggregationError, match="'mallory' is not in the session"):
        Client.start(session_of(3, 2), "mallory", None)

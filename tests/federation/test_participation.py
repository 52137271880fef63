"""Clients that come and go: what they are sent, what they end up with, and which updates count."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TABLE, Federation, build

from fedsrd import methods
from fedsrd.core import lora
from fedsrd.core.lora import LoraPair
from fedsrd.core.tensors import GlobalState
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import snapshot
from fedsrd.federation.client import NOTHING
from fedsrd.federation.ledger import Ledger
from fedsrd.federation.messages import Broadcast, Failure, Sync
from fedsrd.federation.sampling import choose, share

EVERY = pytest.mark.parametrize("name", methods.names())


def settle(federation):
    """Brings everybody to the newest version; all must then hold one state."""
    for client in federation.clients:
        client.sync(federation.server.sync(client.name))
        federation.delivered(client.name)
    assert {client.digest for client in federation.clients} == {federation.server.digest}


@EVERY
def test_whoever_comes_and_goes_ends_with_the_same_bits(name):
    federation = Federation(build(name), keys=(1, 2, 3, 4))
    random = np.random.default_rng(0)
    for _ in range(8):
        present = sorted(random.choice(4, size=2, replace=False).tolist())
        closed = federation.round(present)
        assert not federation.failures()
        assert len(closed.accepted) == 2
    settle(federation)


def test_who_missed_rounds_gets_exactly_those_in_the_next_task():
    federation = Federation(build("fedsrd"), keys=(1, 2, 3))
    closed = [federation.round([0, 1]) for _ in range(2)]
    federation.round([0, 2])
    sync = federation.sent["c2"].sync
    assert sync.start is None
    assert sync.snapshot is None
    assert [b.payload for b in sync.broadcasts] == [c.broadcast.payload for c in closed]
    assert sync.size == sum(len(c.broadcast.payload) for c in closed)
    assert federation.sent["c0"].sync == Sync(counted=2)
    # And a round later nothing of it again.
    federation.round([2])
    assert federation.sent["c2"].sync == Sync(counted=3)


def test_a_client_that_is_far_behind_gets_the_whole_state_and_the_ledger_stays_bounded():
    federation = Federation(build("fedavg"), keys=(1, 2, 3))
    sizes = []
    for _ in range(12):
        federation.round([0, 1])
        sizes.append(federation.server.ledger.size)
    assert max(sizes) <= 4 * TABLE.elements
    federation.round([0, 2])
    sync = federation.sent["c2"].sync
    assert sync.snapshot is not None
    assert not sync.broadcasts
    assert sync.size < 1.2 * 4 * TABLE.elements
    settle(federation)


def test_nothing_is_kept_that_everybody_holds():
    federation = Federation(build("fedsrd"), keys=(1, 2))
    federation.rounds(5)
    assert len(federation.server.ledger) == 0


@pytest.mark.parametrize("name", ["fedsrd", "flora", "flasc"])
def test_a_new_client_joins_at_any_round(name):
    federation = Federation(build(name), keys=(1, 2))
    late = Federation(build(name), keys=(5,)).clients[0]
    federation.rounds(3)
    late.restore(NOTHING)
    late.name = "late"
    federation.clients.append(late)
    federation.round()
    assert not federation.failures()
    assert late.digest == federation.server.digest


@EVERY
def test_a_replica_that_differs_is_noticed_left_out_and_made_whole(name):
    federation = Federation(build(name), keys=(1, 2))
    federation.rounds(2)
    broken = federation.clients[1]
    first, tensor = next(iter(broken.state.tensors.items()))
    broken.restore(
        GlobalState({**broken.state.tensors, first: tensor + 1}, broken.state.base_delta, broken.state.version)
    )
    closed = federation.round()
    assert [failure.client for failure in closed.rejected] == ["c1"]
    assert federation.failures()[0].lost
    closed = federation.round()
    assert federation.sent["c1"].sync.snapshot is not None
    assert not closed.rejected
    assert broken.digest == federation.server.digest


def test_a_client_that_lost_its_disk_is_made_whole():
    federation = Federation(build("fedsrd"), keys=(1, 2))
    federation.rounds(3)
    federation.clients[1].restore(NOTHING)
    assert [failure.client for failure in federation.round().rejected] == ["c1"]
    assert not federation.round().rejected
    settle(federation)


def test_nothing_is_applied_twice():
    federation = Federation(build("fedsrd"), keys=(1, 2))
    federation.round([0])
    sync = federation.server.sync("c1")
    client = federation.clients[1]
    for _ in range(3):
        client.sync(sync)
        assert client.digest == federation.server.digest
    twice = dataclasses.replace(sync, broadcasts=sync.broadcasts * 2)
    client.sync(twice)
    assert client.digest == federation.server.digest


def test_a_gap_in_the_broadcasts_is_refused_and_the_replica_stays():
    federation = Federation(build("fedsrd"), keys=(1, 2))
    federation.round([0])
    federation.round([0])
    sync, client = federation.server.sync("c1"), federation.clients[1]
    before = client.digest
    with pytest.raises(PayloadError, match="a broadcast of round 2: expected one for version 0"):
        client.sync(dataclasses.replace(sync, broadcasts=sync.broadcasts[1:]))
    assert client.digest == before


def test_an_update_of_an_older_version_is_left_out_by_its_version():
    federation = Federation(build("fedsrd"), keys=(1, 2, 3))
    late = federation.clients[2].train(federation.server.task("c2"), lambda *_: None)
    federation.round([0, 1])
    answers = [federation.clients[0].train(federation.server.task("c0"), lambda *_: None), late]
    closed = federation.server.close_round(answers)
    assert [update.client for update in closed.accepted] == ["c0"]
    assert "of round 1 for version 0: expected an uplink of round 2 for version 1" in closed.rejected[0].reason


# Snapshots.


@pytest.mark.parametrize("name", ["fedsrd", "flora"])
def test_a_snapshot_is_the_state_bit_for_bit(name):
    federation = Federation(build(name)).rounds(3)
    server = federation.server
    taken = snapshot.take(server.state, TABLE)
    read = snapshot.read(taken, TABLE)
    assert taken.digest == server.digest == read.digest
    assert read.version == server.version
    assert list(read.tensors) == list(server.state.tensors)
    for name, tensor in server.state.tensors.items():
        assert torch.equal(tensor, read.tensors[name])
    assert {name: t.numpy().tobytes() for name, t in read.base_delta.items()} == {
        name: t.numpy().tobytes() for name, t in server.state.base_delta.items()
    }


def test_a_snapshot_that_is_not_whole_is_refused():
    server = Federation(build("fedsrd")).rounds(2).server
    taken = snapshot.take(server.state, TABLE)
    with pytest.raises(PayloadError, match="checksum"):
        snapshot.read(dataclasses.replace(taken, payload=taken.payload[:-1] + b"x"), TABLE)
    with pytest.raises(PayloadError, match="expected a snapshot of version 9"):
        snapshot.read(dataclasses.replace(taken, version=9), TABLE)
    modules = lora.modules_of(TABLE)[:-1]
    less = lora.table_of(modules)
    state = GlobalState({name: server.state.tensors[name] for name in less.shapes}, {}, 2)
    with pytest.raises(PayloadError, match="tensor table"):
        snapshot.read(snapshot.take(state, less), TABLE)
    with pytest.raises(PayloadError, match="a snapshot without all of l1.q.lora_B.weight"):
        snapshot.read(snapshot.take(state, TABLE), TABLE)
    closed = Federation(build("fedsrd")).round()
    with pytest.raises(PayloadError, match="expected a snapshot"):
        snapshot.read(dataclasses.replace(taken, payload=closed.broadcast.payload), TABLE)
    changed = Federation(build("flora")).rounds(2).server
    with pytest.raises(PayloadError, match="a change of the frozen weights: this method makes none"):
        Federation(build("fedsrd")).clients[0].sync(Sync(snapshot=snapshot.take(changed.state, TABLE)))
    half = Federation(build("fedsrd")).clients[0]
    with pytest.raises(FederationError, match="version 2 has digest"):
        half.sync(Sync(snapshot=dataclasses.replace(taken, digest="0" * 64)))
    assert half.version == 0


# Validation.


def test_an_update_far_above_the_median_is_left_out():
    federation = Federation(build("fedavg"), keys=(1, 2, 3, 4), norm_bound=10.0)
    loud = federation.trainers["c2"]
    train = loud.train

    def shout(plan, number, on_step):
        found = train(plan, number, on_step)
        found.tensors = {name: plan.start[name] + 1000 * (t - plan.start[name]) for name, t in found.tensors.items()}
        return found

    loud.train = shout
    closed = federation.round()
    assert [failure.client for failure in closed.rejected] == ["c2"]
    assert "times the round's median" in closed.rejected[0].reason
    assert [update.client for update in closed.accepted] == ["c0", "c1", "c3"]
    assert len(closed.uplinks) == 3
    assert closed.broadcast.clients == 3
    settle(federation)
    # Without a bound, and with two clients, of whom no one can tell which is wrong, it counts.
    free = Federation(build("fedavg"), keys=(1, 2, 3, 4))
    free.trainers["c2"].train = shout
    assert not free.round().rejected


def test_a_round_with_too_few_usable_updates_leaves_the_state_as_it_was():
    federation = Federation(build("fedsrd"), keys=(1, 2), minimum=2, spoil={"c1": (1,)})
    before = federation.server.digest
    with pytest.raises(FederationError, match="round 1: 1 of at least 2 clients sent a usable update"):
        federation.round()
    assert (federation.server.digest, federation.server.version) == (before, 0)
    federation.trainers["c1"].spoil = ()
    federation.round()
    assert federation.server.version == 1


# Who is asked.


@given(st.integers(1, 50), st.floats(0.01, 1.0), st.integers(1, 50), st.integers(0, 2**32), st.integers(1, 99))
def test_a_sample_has_the_share_that_was_asked_for(count, fraction, minimum, seed, number):
    names = [f"c{place}" for place in range(count)]
    wanted = share(count, fraction, minimum)
    found = choose(names, wanted, seed, number)
    assert found == sorted(set(found), key=names.index)
    assert len(found) == wanted == min(max(round(fraction * count), minimum, 1), count)
    assert found == choose(names, wanted, seed, number)


def test_everybody_is_asked_about_equally_often():
    names = [f"c{place}" for place in range(10)]
    asked = [name for number in range(1, 401) for name in choose(names, share(10, 0.2, 1), 7, number)]
    counts = [asked.count(name) for name in names]
    assert sum(counts) == 800
    assert min(counts) > 50
    assert max(counts) < 110


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=40), st.integers(0, 300))
def test_the_ledger_gives_a_whole_chain_or_nothing(moves, limit):
    ledger, newest, chain = Ledger(), 0, {}
    for client, length in moves:
        newest += 1
        chain[newest] = Broadcast(newest, newest, bytes(length), str(newest), 1)
        ledger.append(chain[newest], [str(client)])
        assert ledger.counted[str(client)] == newest
        ledger.known[str(client)] = newest
        ledger.prune(limit)
        assert ledger.size <= limit or not len(ledger)
        for version in range(newest + 1):
            found = ledger.since(version, newest)
            if found is not None:
                assert list(found) == [chain[number] for number in range(version + 1, newest + 1)]
    assert ledger.since(newest, newest) == ()


def test_failures_are_not_lost_by_default():
    assert not Failure("c", 1, "x").lost
    assert json.dumps(dataclasses.asdict(Failure("c", 1, "x")))


def test_an_update_whose_scores_overflow_is_a_failure_with_its_reason():
    federation = Federation(build("fedsrd"), keys=(1, 2))
    wild = federation.trainers["c1"]
    train = wild.train

    def diverge(plan, number, on_step):
        found = train(plan, number, on_step)
        pairs = lora.pairs_of(found.tensors)
        found.tensors = lora.tensors_of({m: LoraPair(pair.B + 3e38, pair.A * 1e30) for m, pair in pairs.items()})
        return found

    wild.train = diverge
    closed = federation.round()
    assert [failure.client for failure in closed.rejected] == ["c1"]
    assert "NaN or infinity" in closed.rejected[0].reason
    settle(federation)

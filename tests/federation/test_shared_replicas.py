"""Clients in one process share what a broadcast leads to: the same states as clients on their own, made once."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toy import Federation, build
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.core.tensors import GlobalState, digest
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import local, setup, transition
from fedsrd.federation.client import Client
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import read_rounds

METHODS = pytest.mark.parametrize("name", ["fedsrd", "fedavg", "flora", "flasc", "cyclic", "fedsrd-ef"])


@pytest.fixture
def advanced(monkeypatch):
    """The versions from which states were really made."""
    versions, real = [], transition.advance

    def counting(config, state, payload, clients):
        versions.append(state.version)
        return real(config, state, payload, clients)

    monkeypatch.setattr(transition, "advance", counting)
    return versions


def sharing(name, keys=(1, 2, 3), **options):
    """A federation whose clients share, from its start."""
    federation = Federation(build(name, **options), keys=keys)
    shared = local.Shared()
    for client in federation.clients:
        client._advanced = shared.advance
    return federation, shared


@METHODS
def test_the_states_of_clients_on_their_own_made_once(name, advanced):
    alone = Federation(build(name), keys=(1, 2, 3))
    together, _ = sharing(name)
    for number in range(4):
        expected, found = alone.round(), together.round()
        assert found.broadcast == expected.broadcast
        assert [one.payload for one in found.accepted] == [one.payload for one in expected.accepted]
        assert advanced.count(number) == 1
        first, *others = [client.state for client in together.clients]
        assert all(other is first for other in others)
        # The server's own is not theirs: it was not made from the bytes by a client.
        assert first is not together.server.state
        # And nobody wrote to it: the digest that is remembered is that of the numbers.
        assert digest(first.tensors, first.base_delta) == first.digest == alone.server.digest
        assert first.version == number + 1


def test_who_is_behind_gets_what_follows_on_its_own_state():
    federation, shared = sharing("fedavg")
    start = federation.server.state
    first = federation.round(present=[0, 1]).broadcast
    second = federation.clients[0].state
    federation.round(present=[0, 1])
    late = federation.clients[2]
    assert late.version == 0
    federation.round()
    assert late.version == 3
    assert [client.digest for client in federation.clients] == [federation.server.digest] * 3
    # After the state in between it is at the others' again, and shares.
    federation.round()
    assert federation.clients[2].state is federation.clients[0].state
    # What is no longer remembered is made again.
    again = shared.advance(federation.config, start, first.payload, first.clients)
    assert again is not second
    assert again.digest == second.digest


def test_another_state_payload_or_version_is_never_given_a_wrong_one():
    federation, shared = sharing("fedavg", keys=(1, 2))
    start = federation.server.state
    broadcast = federation.round().broadcast
    right = federation.clients[0].state
    assert shared.advance(federation.config, start, broadcast.payload, 2) is right
    other = GlobalState({name: tensor + 1 for name, tensor in start.tensors.items()})
    made = shared.advance(federation.config, other, broadcast.payload, 2)
    assert made is not right
    assert made.digest == transition.advance(federation.config, other, broadcast.payload, 2).digest
    # The same numbers, but of a version on which the broadcast does not build.
    shared.advance(federation.config, start, broadcast.payload, 2)
    later = GlobalState(start.tensors, {}, 5)
    assert later.digest == start.digest
    with pytest.raises(PayloadError, match="expected a downlink of round 6 for version 5"):
        shared.advance(federation.config, later, broadcast.payload, 2)
    with pytest.raises(PayloadError):
        shared.advance(federation.config, start, broadcast.payload[:-1], 2)
    # An error has not changed what is remembered.
    again = shared.advance(federation.config, start, broadcast.payload, 2)
    assert again is shared.advance(federation.config, start, bytes(broadcast.payload), 2)


def test_a_digest_that_is_not_the_servers_is_still_found():
    federation, _ = sharing("fedavg", keys=(1, 2))
    broadcast = federation.round().broadcast
    third = Client("c2", federation.config, None, advance=federation.clients[0]._advanced)
    third.start(federation.server.start())
    lied = replace(broadcast, digest="0" * 64)
    with pytest.raises(FederationError, match="has digest"):
        third.apply(lied, counted=False)
    assert third.version == 0


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_run_is_the_same_with_and_without(tiny_recipe, tmp_path, monkeypatch, advanced, share):
    tiny_recipe["participation"] = {"fraction": share}

    def run(path):
        clients = []

        class Watched(Client):
            def __init__(self, *args, **named):
                super().__init__(*args, **named)
                clients.append(self)

        monkeypatch.setattr(local, "Client", Watched)
        prepared = setup.prepare(recipes.parse(tiny_recipe), RunFolder(path), resume=False, observer=Watch())
        local.run(prepared, Watch())
        return [record.digest for record in read_rounds(path / "rounds.jsonl")], clients

    found, clients = run(tmp_path / "shared")
    shared_calls = len(advanced)
    if share == 1.0:
        assert advanced == [0, 1, 2]
        first, second = (client.state for client in clients)
        assert all(first.tensors[name] is second.tensors[name] for name in first.tensors)
    monkeypatch.setattr(local.Shared, "advance", lambda self, *args: transition.advance(*args))
    alone, _ = run(tmp_path / "alone")
    assert found == alone
    assert len(advanced) - shared_calls == 6
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("shared", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)

"""What every method must do; a new one joins by being registered. docs/add-a-method.md names this file."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import TABLE, Federation, apart, build, moved, product

from fedsrd import methods, wire
from fedsrd.core.factors import ModuleShape, ShapeTable, Slot, digest, initial_factors
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.resume import restore
from fedsrd.methods import ClientStep, ServerStep, Step
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord
from fedsrd.training.models import adapter_tensors
from fedsrd.wire.payload import Kind, decode_delta, encode_delta, is_finite

EVERY = pytest.mark.parametrize("name", methods.names())
FEDERATED = pytest.mark.parametrize("name", [name for name in methods.names() if not methods.get(name).reference])

LOSSLESS = {
    "fedavg": {},
    "fedprox": {},
    "ffa-lora": {},
    "flexlora": {},
    "flora": {},
    "fedex-lora": {},
    "fedsa-lora": {},
    "local": {},
    "centralised": {},
    "fed-dare": {"drop": 0.0},
    "fedicu-style": {"keep": 1.0},
}
"""Methods that lose nothing of one client's training, with the options that switch their compression off."""


@EVERY
@pytest.mark.parametrize("values", ["float32", "int4"])
def test_replicas_stay_equal_and_finite(name, values):
    federation = Federation(build(name), coding=wire.Coding(values=values))
    for number in (1, 2, 3):
        closed = federation.round()
        assert len(closed.accepted) == 2
        assert not closed.rejected
        assert federation.server.version == number
        assert all(bool(torch.isfinite(weight).all()) for weight in federation.weights().values())


@EVERY
def test_updates_and_broadcasts_survive_the_wire(name):
    method, state = build(name), initial_factors(TABLE, 0)
    memory = {}
    for number in (1, 2, 3):
        table = method.downlink_table(TABLE, 2)
        deltas = []
        for key in (1, 2):
            step = ClientStep(number, f"c{key}", 0)
            start = method.local_start(state, step)
            after = moved(start, method.trained(number), np.random.default_rng(key))
            deltas.append(method.client_update(start, after, step))
        read = [decode_delta(encode_delta(d, TABLE, Kind.UPLINK, number, 0), TABLE)[1] for d in deltas]
        one = method.server_update(state, deltas, [0.5, 0.5], ServerStep(number, 0, memory=dict(memory)))
        step = ServerStep(number, 0, memory=dict(memory))
        other = method.server_update(state, read, [0.5, 0.5], step)
        sent = decode_delta(encode_delta(other, table, Kind.DOWNLINK, number, 0), table)[1]
        after = method.apply(state, sent, Step(number, 0))
        assert digest(after) == digest(method.apply(state, one, Step(number, 0)))
        state, memory = after, step.memory


@EVERY
def test_a_run_follows_from_its_seed_alone(name):
    first = Federation(build(name)).rounds(3)
    torch.manual_seed(99)
    second = Federation(build(name)).rounds(3)
    assert first.server.digest == second.server.digest
    assert apart(first.weights(), second.weights()) == 0


@pytest.mark.parametrize(("name", "options"), LOSSLESS.items())
def test_one_client_alone_is_local_training(name, options):
    federation = Federation(build(name, **options), keys=(3,))
    for _ in range(3):
        before = federation.server.base
        federation.round()
        local = product(federation.trainers["c0"].last, before)
        assert apart(federation.weights(), local) < 1e-5


@pytest.mark.parametrize("name", sorted(set(methods.names()) - set(LOSSLESS)))
def test_one_client_alone_is_local_training_up_to_compression(name):
    """Where something is always lost, the model still moves the way that training went."""
    federation = Federation(build(name), keys=(3,))
    federation.round()
    local = product(federation.trainers["c0"].last)
    found = federation.weights()
    both = sum(float((found[name] * local[name]).sum()) for name in found)
    sizes = [sum(float(weight.square().sum()) for weight in side.values()) ** 0.5 for side in (found, local)]
    assert both / (sizes[0] * sizes[1]) > 0.2


@EVERY
def test_equal_clients_count_as_one(name):
    # Names seed the clients' own draws: a random uplink differs from client to client, as it should.
    options = {"drop": 0.0} if name == "fed-dare" else {}
    alone, many = Federation(build(name, **options), keys=(1,)), Federation(build(name, **options), keys=(1, 1, 1))
    for _ in range(3):
        alone.round()
        many.round()
        for one, other in zip(alone.weights().values(), many.weights().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@EVERY
@pytest.mark.parametrize("number", [1, 2])
def test_clients_that_learnt_nothing_change_nothing(name, number):
    """Also in an even round with B still zero, whose pseudo-inverse is zero."""
    method, start = build(name), initial_factors(TABLE, 0)
    deltas = [method.client_update(start, dict(start), ClientStep(number, "c", 0))]
    step = ServerStep(number, 0)
    broadcast = method.server_update(start, deltas, [1.0], step)
    assert is_finite(broadcast)
    after = method.apply(start, broadcast, Step(number, 0))
    base = dict(method.base_change(start, broadcast, Step(number, 0)))
    assert apart(product(method.model(after, step.memory), base), product(start)) < 1e-7


@EVERY
def test_a_client_that_diverges_is_left_out_and_the_others_go_on(name):
    federation = Federation(build(name), keys=(1, 2, 3), spoil={"c1": (2,)})
    federation.rounds(3)
    assert federation.server.version == 3
    assert all(bool(torch.isfinite(weight).all()) for weight in federation.weights().values())
    federation = Federation(build(name), keys=(1,), spoil={"c0": (2,)})
    federation.round()
    before, kept = federation.server.digest, dict(federation.clients[0].memory)
    with pytest.raises(FederationError, match="NaN"):
        federation.round()
    assert federation.server.digest == before
    assert federation.clients[0].memory == kept


@EVERY
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(name, tmp_path):
    whole, broken = Federation(build(name)).rounds(4), Federation(build(name)).rounds(2)
    folder = RunFolder(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "adapter").mkdir()
    server = broken.server
    memories = {client.name: client.memory for client in broken.clients}
    written = Checkpoint(server.factors, 2, server.base, server.memory, memories)
    so_far = [RoundRecord(round=n, digest="", bytes_up={}, bytes_down={}, eval={}) for n in range(3)]
    folder.commit(written.version, written.to_bytes(), so_far, adapter_tensors(server.model()))
    read, records = restore(folder)
    assert read.digest == server.digest
    assert records == so_far
    again = Federation(build(name))
    again.server.restore(read.factors, read.version, read.base, read.server)
    for client in again.clients:
        client.restore(read.factors, read.version, read.base, read.clients.get(client.name))
    again.rounds(2)
    assert again.server.digest == whole.server.digest
    assert apart(again.weights(), whole.weights()) == 0


@FEDERATED
def test_what_is_sent_is_counted_and_less_than_nothing_is_not_sent(name):
    closed = Federation(build(name)).round()
    assert all(sum(counts.values()) > 0 for counts in closed.uplinks)
    assert sum(closed.downlink.values()) > 0


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).any_rank])
def test_clients_of_lower_ranks_train_and_send_their_own_components_only(name):
    ranks = {"c0": 2, "c1": None}
    federation = Federation(build(name), ranks=ranks)
    for _ in range(2):
        before = federation.server.base
        closed = federation.round()
        assert closed.uplinks[0][Slot("l0.q", "B")] == 24 * 2
        assert closed.uplinks[1][Slot("l0.q", "B")] == 24 * 4
        start = federation.trainers["c0"].seen[-1][0]
        assert not start["l0.q"].B[:, 2:].any()
        assert not start["l0.q"].A[2:].any()
        locals_ = [product(trainer.last, before) for trainer in federation.trainers.values()]
        mean = {module: (locals_[0][module] + locals_[1][module]) / 2 for module in locals_[0]}
        if name == "flora":
            assert apart(federation.weights(), mean) < 1e-5
        else:
            for module, weight in mean.items():
                u, s, vh = torch.linalg.svd(weight)
                best = (u[:, :4] * s[:4]) @ vh[:4]
                assert float((federation.weights()[module] - best).abs().max()) < 1e-5


def test_fedsrd_sends_a_tenth_and_b_and_a_in_turn():
    table = ShapeTable((ModuleShape("m", 600, 500, 16),))
    method, state = build("fedsrd"), initial_factors(table, 0)
    for number in (1, 2, 3, 4):
        deltas = [
            method.client_update(state, moved(state, "BA", np.random.default_rng(key)), ClientStep(number, "c", 0))
            for key in (1, 2)
        ]
        broadcast = method.server_update(state, deltas, [0.5, 0.5], ServerStep(number, 0))
        state = method.apply(state, broadcast, Step(number, 0))
        assert [slot.factor for slot in broadcast] == ["B" if number % 2 else "A"]
        assert len(encode_delta(deltas[0], table, Kind.UPLINK, 1, 0)) < 0.1 * 4 * table.elements
        assert next(iter(broadcast.values())).count / (8000 + 1600 * (number % 2)) == pytest.approx(0.2, abs=0.02)


def test_an_unknown_method_names_the_nearest_and_all():
    with pytest.raises(RecipeError, match=r"Did you mean 'fedsrd-e'\? Known: centralised, fed-dare, fedavg"):
        methods.get("fedsrde")


@pytest.mark.parametrize(
    "options",
    [{"alpha": 1.0}, {"alpha": -0.1}, {"download_sparsity": 1.0}, {"rescale": "l2"}, {"rescale_cap": 0.5}, {"x": 1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        build("fedsrd", **options)

"""The one way from a version to the next: pure, the same at both ends, and the same from the library."""

import numpy as np
import pytest
import torch
from toy import TABLE, Federation, build, config_of, moved

import fedsrd
from fedsrd import wire
from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import GlobalState, SparseTensor
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import transition
from fedsrd.federation.messages import Held
from fedsrd.federation.server import Server
from fedsrd.methods import Contribution
from fedsrd.training.models import adapter_tensors

KINDS = pytest.mark.parametrize("name", ["fedsrd", "fedavg", "flora", "flasc"])
VALUES = pytest.mark.parametrize(
    "values", ["float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"]
)


def bits(value):
    """Everything that an input or a result holds, as bytes, in its order."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.contiguous().numpy().tobytes()
    if isinstance(value, SparseTensor):
        where = None if value.positions is None else bits(value.positions)
        return value.shape, where, bits(value.values), value.draw
    if isinstance(value, GlobalState):
        return bits(value.tensors), bits(value.base_delta), value.version
    if isinstance(value, Contribution):
        return value.client, bits(value.delta), value.weight, value.rank
    if isinstance(value, dict):
        return [(name, bits(found)) for name, found in value.items()]
    return [bits(found) for found in value]


def sized(sparse, size):
    """The same elements with values of this size and of random sign."""
    signs = torch.from_numpy(np.random.default_rng(sparse.count).choice([-1.0, 1.0], sparse.count)).float()
    return SparseTensor(sparse.shape, sparse.positions, signs * size, sparse.draw)


class Inputs:
    """State, memory and contributions of a round after a few others."""

    def __init__(self, name, values="float32", rounds=2):
        federation = Federation(build(name), coding=wire.WireOptions(values=values)).rounds(rounds)
        self.config, self.server = federation.config, federation.server
        self.state, self.memory = federation.server.state, federation.server.memory
        tasks = [federation.server.task(client.name) for client in federation.clients]
        updates = [client.train(task, lambda *_: None) for client, task in zip(federation.clients, tasks, strict=True)]
        self.payloads = [update.payload for update in updates]
        self.contributions = [
            Contribution(update.client, transition.read_update(self.config, self.state, update.payload), 0.5)
            for update in updates
        ]

    def close(self, contributions=None, config=None):
        given = self.contributions if contributions is None else contributions
        return transition.close(config or self.config, self.state, given, self.memory, 2)

    def bits(self):
        return bits(self.state), bits(self.memory), bits(self.contributions), self.payloads


@KINDS
@pytest.mark.parametrize("values", ["float32", "int4"])
def test_a_round_is_a_function_of_its_inputs_and_leaves_them(name, values):
    inputs = Inputs(name, values)
    before = inputs.bits()
    first = inputs.close()
    assert inputs.bits() == before
    again = inputs.close()
    assert (first.payload, bits(first.state), bits(first.memory)) == (
        again.payload,
        bits(again.state),
        bits(again.memory),
    )
    assert first.state.version == inputs.state.version + 1
    assert first.state.digest != inputs.state.digest
    # The client's side, from the bytes alone.
    held = GlobalState(
        {key: tensor.clone() for key, tensor in inputs.state.tensors.items()},
        {key: tensor.clone() for key, tensor in inputs.state.base_delta.items()},
        inputs.state.version,
    )
    untouched = bits(held)
    advanced = transition.advance(inputs.config, held, first.payload, 2)
    assert bits(held) == untouched
    assert bits(advanced) == bits(first.state)
    assert inputs.bits() == before


@KINDS
def test_a_result_shares_nothing_that_a_caller_may_change_later(name):
    """Replicas and the server hold results side by side: one round's tensors are not written to by the next."""
    inputs = Inputs(name)
    first = inputs.close()
    kept = bits(first.state), bits(first.memory)
    config, state = inputs.config, first.state
    transition.advance(config, inputs.state, first.payload, 2)
    contributions = [Contribution(one.client, one.delta, one.weight) for one in inputs.contributions]
    transition.close(config, state, contributions, first.memory, 2)
    assert (bits(first.state), bits(first.memory)) == kept


@KINDS
def test_an_error_leaves_the_inputs_too(name):
    inputs = Inputs(name)
    before = inputs.bits()
    # Finite updates of which something on the way is not, or whose broadcast its number type cannot hold.
    huge = [
        Contribution(one.client, {key: sized(sparse, 3e38) for key, sparse in one.delta.items()}, one.weight)
        for one in inputs.contributions
    ]
    narrow = config_of(inputs.config.method, TABLE, down=wire.WireOptions(values="float16"))
    for config in (inputs.config, narrow) if name != "fedavg" else (narrow,):
        with pytest.raises(FederationError, match=r"round 3: .*; state kept"):
            inputs.close(huge, config)
    assert inputs.bits() == before
    # A broadcast that is damaged, or of another version, number of updates or table.
    closed = inputs.close()
    other = table_of((LoraModule("l0.q", 24, 16, 4),))
    for payload, state, config in (
        (closed.payload[:-1], inputs.state, inputs.config),
        (closed.payload[:-1] + bytes([closed.payload[-1] ^ 1]), inputs.state, inputs.config),
        (closed.payload, closed.state, inputs.config),
        (inputs.payloads[0], inputs.state, inputs.config),
        (b"", inputs.state, inputs.config),
        (closed.payload, inputs.state, config_of(inputs.config.method, other)),
    ):
        with pytest.raises(PayloadError):
            transition.advance(config, state, payload, 2)
    assert inputs.bits() == before
    # And nothing of all that has an effect on what comes.
    assert inputs.close().payload == closed.payload


@KINDS
@VALUES
def test_server_and_clients_hold_one_state_and_only_bytes_passed_between_them(name, values):
    method, coding = build(name), wire.WireOptions(values=values)
    config = config_of(method, up=coding)
    server = Server(config)
    replica = config_of(method, up=coding).start()
    for number in (1, 2, 3):
        payloads = []
        for key in (1, 2):
            context, codec = transition.client_context(config, number, f"c{key}", None, {})
            plan = method.local_plan(replica, context)
            after = moved(plan.start, plan.trained, np.random.default_rng([key, number]))
            delta, _ = transition.update(config, plan, after, context)
            payloads.append(codec.payload(delta, wire.Kind.UPLINK, number, replica.version))
        contributions = [
            Contribution(f"c{key}", transition.read_update(config, server.state, payload), 0.5)
            for key, payload in enumerate(payloads, 1)
        ]
        closed = transition.close(config, server.state, contributions, server.memory, 2)
        server.restore(closed.state, closed.memory)
        replica = transition.advance(config, replica, closed.payload, 2)
        assert bits(replica) == bits(server.state)
        assert {key: bits(s.dense()) for key, s in closed.sent.items()} == {
            key: bits(s.dense()) for key, s in wire.decode_delta(closed.payload, config.downlink_table(2))[1].items()
        }


# The library's loop is the same server.


def named(tensors):
    return adapter_tensors(tensors)


def in_order(tensors, like):
    return {name: tensors[name] for name in like}


@pytest.mark.parametrize("name", ["fedsrd", "fedsrd-e", "fedavg", "flasc", "ffa-lora", "fed-dare"])
@VALUES
def test_the_library_makes_the_bytes_of_a_run(name, values):
    """`Aggregator`, `sparsify`, `encode` and `apply` against a federation: every payload, both ways, and the state."""
    federation = Federation(build(name), seed=7, coding=wire.WireOptions(values=values), keys=(1, 2, 3))
    start = named(federation.server.state.tensors)
    server = fedsrd.Aggregator(start, method=name, values=values, seed=7)
    state = server.state
    for number in range(1, 5):
        closed = federation.round()
        payloads = []
        for client, trainer in federation.trainers.items():
            before, after = named(trainer.seen[-1].start), named(trainer.last)
            assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
            delta = fedsrd.sparsify(state, after, round=number, client=client, method=name, seed=7)
            payload = fedsrd.encode(delta, state, round=number, client=client, values=values, seed=7)
            (update,) = [update for update in closed.accepted if update.client == client]
            assert payload == update.payload
            payloads.append(payload)
        broadcast = server.close(payloads)
        assert broadcast == closed.broadcast.payload
        state = fedsrd.apply(state, broadcast, method=name, seed=7)
        for found in (state, server.state):
            assert {key: bits(tensor) for key, tensor in found.items()} == {
                key: bits(tensor) for key, tensor in named(federation.server.state.tensors).items()
            }
        model = named(federation.server.model())
        assert {key: bits(t) for key, t in server.model().items()} == {key: bits(t) for key, t in model.items()}


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("name", ["fedavg", "fedsrd", "flasc"])
def test_the_library_takes_a_server_optimizer_as_a_run_does(name, optimizer):
    federation = Federation(build(name), optimizer=optimizer)
    start = named(federation.server.state.tensors)
    server = fedsrd.Aggregator(start, method=name, server_optimizer=optimizer)
    for number in range(1, 4):
        closed = federation.round()
        broadcast = server.close([update.payload for update in closed.accepted])
        assert (server.round, broadcast) == (number, closed.broadcast.payload)


def test_the_librarys_model_is_flascs_theta():
    """What is evaluated and kept never travels whole: the state is its largest elements."""
    federation = Federation(build("flasc")).rounds(0)
    server = fedsrd.Aggregator(named(federation.server.state.tensors), method="flasc")
    assert {key: bits(t) for key, t in server.model().items()} == {key: bits(t) for key, t in server.state.items()}
    for _ in range(3):
        closed = federation.round()
        server.close([update.payload for update in closed.accepted])
    memory = federation.server.memory
    theta = named({key: memory[f"theta/{key}"] for key in TABLE.shapes})
    assert {key: bits(t) for key, t in server.model().items()} == {
        key: bits(t) for key, t in in_order(theta, server.model()).items()
    }
    assert any(not torch.equal(tensor, server.state[key]) for key, tensor in server.model().items())
    for key, tensor in server.state.items():
        there = tensor != 0
        assert torch.equal(tensor[there], server.model()[key][there])


def test_whoever_holds_an_older_version_advances_step_by_step():
    federation = Federation(build("fedavg"), keys=(1, 2, 3))
    states, payloads = [federation.server.state], []
    for _ in range(3):
        payloads.append(federation.round([0, 1]).broadcast.payload)
        states.append(federation.server.state)
    assert federation.server.differs(Held("c2", 3, states[2].digest))
    for version, payload in enumerate(payloads):
        following = transition.advance(federation.config, states[version], payload, 2)
        assert (following.version, following.digest) == (version + 1, states[version + 1].digest)
        for wrong in set(range(3)) - {version}:
            with pytest.raises(PayloadError, match=f"expected a downlink of round {wrong + 1} for version {wrong}"):
                transition.advance(federation.config, states[wrong], payload, 2)

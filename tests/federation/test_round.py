"""Client and server with a trainer that only adds noise: the protocol without a model."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from toy import build, config_of

from fedsrd import methods, rng, wire
from fedsrd.core import lora
from fedsrd.core.lora import LoraModule
from fedsrd.core.tensors import GlobalState, digest
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation.client import Client
from fedsrd.federation.messages import Failure, Update
from fedsrd.federation.server import Server, TooFewError

TABLE = lora.table_of((LoraModule("layers.0.q_proj", 24, 16, 4), LoraModule("layers.0.v_proj", 8, 16, 4)))


@dataclass
class Result:
    tensors: dict[str, torch.Tensor]
    loss: float = 1.0


class NoiseTrainer:
    """'Trains' by adding noise that follows from its name and the round."""

    def __init__(self, name: str, count: int = 10, poison: float | None = None) -> None:
        self.name, self.count, self.poison = name, count, poison

    def train(self, plan, round_number, on_step):
        tensors = {}
        for name, tensor in plan.start.items():
            noise = rng.uniform(tensor.numel(), 0.1, 0, self.name, round_number, name)
            tensors[name] = tensor + torch.from_numpy(noise).reshape(tensor.shape) * (name in plan.trained)
        if plan.gradient_hook is not None:
            plan.gradient_hook({name: tensors[name] - plan.start[name] for name in plan.trained})
        if self.poison is not None:
            next(iter(tensors.values()))[0, 0] = self.poison
        on_step(1, 1.0)
        return Result(tensors)


def federation(name="fedsrd", counts=(10, 20, 30), weighting="uniform", poison=None, coding=None, **more):
    config = config_of(build(name), TABLE, seed=3, up=coding)
    server = Server(config, weighting, **more)
    clients = [
        Client(f"c{i}", config, NoiseTrainer(f"c{i}", count, (poison or {}).get(f"c{i}")))
        for i, count in enumerate(counts)
    ]
    for client in clients:
        client.start(server.start())
    return server, clients


def answers(server, clients):
    return [client.train(server.task(client.name), lambda step, loss: None) for client in clients]


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "int4"])
def test_replicas_are_equal_bit_for_bit_after_every_round(name, values):
    method = methods.get(name)
    server, clients = federation(name, coding=wire.WireOptions(values=values))
    seen = {server.digest}
    for _ in range(4):
        closed = server.close_round(answers(server, clients))
        found = {client.apply(closed.broadcast, counted=True) for client in clients}
        assert found == {server.digest} == {closed.broadcast.digest}
        seen |= found
    assert len(seen) == (1 if method.reference else 5)
    assert server.version == 4 == clients[0].version


def test_the_first_download_is_a_few_bytes():
    server, clients = federation()
    assert len(server.start().payload) == 64
    assert digest(clients[0].state.tensors) == digest(server.state.tensors)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_client_with_a_bad_update_is_left_out_and_named(poison):
    server, clients = federation(poison={"c1": poison})
    closed = server.close_round(answers(server, clients))
    assert [failure.client for failure in closed.rejected] == ["c1"]
    assert "NaN" in closed.rejected[0].reason
    clean, others = federation(counts=(10, 20, 30))
    expected = clean.close_round([answer for answer in answers(clean, others) if answer.client != "c1"])
    assert closed.broadcast.digest == expected.broadcast.digest
    # It still takes part from the next round on.
    assert clients[1].apply(closed.broadcast, counted=False) == closed.broadcast.digest


def test_the_server_does_not_trust_a_client_to_check_itself(monkeypatch):
    server, clients = federation("fedavg")
    good = answers(server, clients)
    header, delta = wire.decode_delta(good[0].payload, TABLE)
    name = next(iter(delta))
    delta[name].values[0] = float("nan")
    with monkeypatch.context() as careless:
        careless.setattr("fedsrd.wire.values._finite", lambda values: True)
        bad = wire.encode_delta(delta, TABLE, wire.Kind.UPLINK, header.round, header.version)
    closed = server.close_round([dataclasses.replace(good[0], payload=bad), *good[1:]])
    assert [failure.client for failure in closed.rejected] == ["c0"]
    assert "a value is NaN or infinite" in closed.rejected[0].reason


def test_an_update_that_its_number_type_cannot_hold_is_a_failure():
    server, clients = federation("fedavg", coding=wire.WireOptions(values="float16"), poison={"c1": 1e6})
    _, second, _ = found = answers(server, clients)
    assert isinstance(second, Failure)
    assert (
        "the update cannot be sent: layers.0.q_proj.lora_B.weight: a value of 1e+06 does not fit float16"
        in second.reason
    )
    assert len(server.close_round(found).accepted) == 2


def test_a_broadcast_that_its_number_type_cannot_hold_keeps_the_state():
    server, clients = federation("fedavg", poison=dict.fromkeys(("c0", "c1", "c2"), 1e6))
    server.config = dataclasses.replace(server.config, downlink=wire.WireOptions(values="float16"))
    before = digest(server.state.tensors)
    with pytest.raises(TooFewError, match="round 1: the broadcast cannot be sent: .* does not fit float16") as found:
        server.close_round(answers(server, clients))
    assert sorted(failure.client for failure in found.value.rejected) == ["c0", "c1", "c2"]
    assert (server.version, digest(server.state.tensors)) == (0, before)
    # Of one of them it is known whose fault that is.
    server, clients = federation("fedavg", poison={"c1": 1e6})
    server.config = dataclasses.replace(server.config, downlink=wire.WireOptions(values="float16"))
    assert [failure.client for failure in server.close_round(answers(server, clients)).rejected] == ["c1"]


def test_when_all_are_bad_the_round_ends_and_the_state_stays():
    server, clients = federation(poison={"c0": float("nan"), "c1": float("nan"), "c2": float("inf")})
    before = digest(server.state.tensors)
    with pytest.raises(FederationError, match="round 1: no client sent a usable update"):
        server.close_round(answers(server, clients))
    assert digest(server.state.tensors) == before
    assert server.version == 0


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: p[:40] + b"\x01" + p[41:], lambda p: b""])
def test_a_damaged_uplink_is_left_out(damage):
    server, clients = federation()
    first, *rest = answers(server, clients)
    closed = server.close_round([dataclasses.replace(first, payload=damage(first.payload)), *rest])
    assert [failure.client for failure in closed.rejected] == ["c0"]
    assert len(closed.accepted) == 2


def test_an_update_of_another_round_is_left_out():
    server, clients = federation()
    old = answers(server, clients)
    closed = server.close_round(old)
    for client in clients:
        client.apply(closed.broadcast, counted=True)
    fresh = answers(server, clients)
    late = dataclasses.replace(old[0], round=2)
    again = server.close_round([late, *fresh[1:]])
    assert "round 1" in again.rejected[0].reason


def test_a_broadcast_cannot_be_applied_twice_or_early():
    server, clients = federation()
    first = server.close_round(answers(server, clients)).broadcast
    clients[0].apply(first, counted=True)
    held = digest(clients[0].state.tensors)
    with pytest.raises(PayloadError, match="a broadcast of round 1: expected one for version 1"):
        clients[0].apply(first, counted=True)
    for client in clients[1:]:
        client.apply(first, counted=True)
    second = server.close_round(answers(server, clients)).broadcast
    late = Client("late", server.config, NoiseTrainer("late"))
    late.start(server.start())
    with pytest.raises(PayloadError):
        late.apply(second, counted=False)
    assert digest(clients[0].state.tensors) == held


def test_a_replica_that_drifted_refuses_to_train_and_to_apply():
    server, clients = federation()
    good = answers(server, clients)
    name = lora.tensor_name("layers.0.q_proj", "A")
    whole = clients[0].state
    clients[0].state = GlobalState({**whole.tensors, name: whole.tensors[name] + 1})
    with pytest.raises(FederationError, match="c0"):
        clients[0].train(server.task(clients[0].name), lambda step, loss: None)
    closed = server.close_round(good)
    with pytest.raises(FederationError, match="digest"):
        clients[0].apply(closed.broadcast, counted=True)
    assert clients[0].version == 0
    # Also where it was changed in place, behind the digest that is computed once.
    clients[1].state.tensors[name][0, 0] += 1
    with pytest.raises(FederationError, match="digest"):
        clients[1].apply(closed.broadcast, counted=True)
    assert clients[1].version == 0


def test_weights_by_examples_follow_the_counts_of_who_answered():
    server, clients = federation("fedavg", counts=(1, 3), weighting="examples", max_share=1.0)
    both = answers(server, clients)
    deltas = [wire.decode_delta(answer.payload, TABLE)[1] for answer in both]
    closed = server.close_round(both)
    downlink = wire.decode_delta(closed.broadcast.payload, TABLE)[1]
    assert closed.downlink == {name: sparse.count for name, sparse in downlink.items()}
    for name, moved in downlink.items():
        expected = 0.25 * deltas[0][name].dense() + 0.75 * deltas[1][name].dense()
        torch.testing.assert_close(moved.dense(), expected)


def test_a_client_that_claims_no_examples_is_left_out():
    server, clients = federation()
    first, *rest = answers(server, clients)
    assert isinstance(first, Update)
    closed = server.close_round([dataclasses.replace(first, examples=0), *rest])
    assert [failure.client for failure in closed.rejected] == ["c0"]


def test_a_failure_is_an_answer():
    server, clients = federation()
    *rest, _ = answers(server, clients)
    closed = server.close_round([*rest, Failure("c2", 1, "out of memory")])
    assert closed.rejected == [Failure("c2", 1, "out of memory")]

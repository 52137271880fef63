"""Methods that keep what they do not send: fedsrd-ef, cyclic, and feedback as a part of FedAvg and its kin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy import TABLE, Federation, build

from fedsrd import wire
from fedsrd.core.feedback import key
from fedsrd.core.tensors import add_weighted, average
from fedsrd.federation import transition
from fedsrd.methods import Contribution

VALUES = ["float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"]
PRUNED = {"rescale": "none", "ratio": "fixed", "alpha": 0.75}
CHOICES = {
    "fedsrd-ef": ("fedsrd-ef", {}),
    "cyclic": ("cyclic", {"period": 3}),
    "two periods and momentum": ("cyclic", {"period": 2, "period_a": 5, "momentum": 0.5}),
    "budget": ("fedsrd-ef", {"ratio": "budget", "bits": 4.0}),
    "sparseloco": ("sparseloco", {"decay": 1.0, "alpha": 0.75}),
    "few bits": ("fedavg", {"feedback": "ef14"}),
    "largest": ("fedavg", {"feedback": "ef14", "sparsifier": "magnitude", **PRUNED}),
    "random": ("fedprox", {"feedback": "ef14", "sparsifier": "random", **PRUNED}),
    "b alone": ("ffa-lora", {"feedback": "ef14", "sparsifier": "importance", **PRUNED}),
    "reconstructed": ("fedsrd-ef", {"server": "alternate", "project": True}),
}
CHOSEN = pytest.mark.parametrize(("name", "options"), CHOICES.values(), ids=CHOICES)


def federation_of(name, options, values, keys=(1, 2)):
    threshold = 0.7 if values.startswith("int") or values == "ternary" else None
    coding = wire.WireOptions(values=values, threshold=threshold, block=16)
    return Federation(build(name, **options), keys=keys, coding=coding)


def sums(federation, present):
    """Runs rounds and adds up, per client and in float64, what training changed and what the server read."""
    names = [client.name for client in federation.clients]
    wanted = {name: {} for name in names}
    arrived = {name: {} for name in names}
    for who in present:
        before = federation.server.state
        federation.round(present=who)
        for answer in federation.answers:
            trainer = federation.trainers[answer.client]
            plan = trainer.seen[-1]
            read = transition.read_update(federation.config, before, answer.payload)
            for tensor in plan.trained:
                change = (trainer.last[tensor] - plan.start[tensor]).double()
                wanted[answer.client][tensor] = wanted[answer.client].get(tensor, 0) + change
                sent = read[tensor].dense().double() if tensor in read else torch.zeros_like(change)
                arrived[answer.client][tensor] = arrived[answer.client].get(tensor, 0) + sent
    return wanted, arrived


@CHOSEN
@pytest.mark.parametrize("values", VALUES)
def test_what_arrived_and_what_is_kept_is_all_there_was(name, options, values):
    federation = federation_of(name, options, values)
    wanted, arrived = sums(federation, [(0, 1), (0,), (0, 1), (1,), (0, 1)])
    for client in federation.clients:
        for tensor, whole in wanted[client.name].items():
            kept = client.memory.kept[key("ef14", tensor)].double()
            torch.testing.assert_close(arrived[client.name][tensor] + kept, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("name", "options"), [("fedsrd-ef", {}), ("fedavg", {"server_feedback": "ef14"})])
def test_so_it_is_at_the_server(name, options, values):
    federation = federation_of(name, options, values)
    aggregates, moved = {}, {}
    for _ in range(4):
        before = federation.server.state
        federation.round()
        deltas = [transition.read_update(federation.config, before, a.payload) for a in federation.answers]
        for tensor, mean in average(before.tensors, deltas, [0.5, 0.5]).items():
            aggregates[tensor] = aggregates.get(tensor, 0) + mean.dense().double()
        for tensor, after in federation.server.state.tensors.items():
            moved[tensor] = moved.get(tensor, 0) + (after.double() - before.tensors[tensor].double())
    for tensor, whole in aggregates.items():
        kept = federation.server.memory[key("ef14", tensor)].double()
        torch.testing.assert_close(moved[tensor] + kept, whole, rtol=1e-5, atol=1e-5)


def test_ef21_comes_to_know_an_update_that_does_not_change():
    federation = Federation(
        build("fedavg", feedback="ef21", sparsifier="magnitude", **PRUNED), coding=wire.WireOptions(values="float32")
    )
    step = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(3)) for name, shape in TABLE.shapes.items()
    }
    for trainer in federation.trainers.values():
        trainer.train = lambda plan, *_: type(
            "R", (), {"tensors": {name: plan.start[name] + step[name] for name in plan.start}, "loss": 1.0}
        )
    for _ in range(8):
        federation.round()
    for client in federation.clients:
        for name, change in step.items():
            torch.testing.assert_close(client.memory.kept[key("ef21", name)], change, rtol=1e-4, atol=1e-4)
    for name, change in step.items():
        torch.testing.assert_close(federation.server.memory[key("ef21", name)], change, rtol=1e-4, atol=1e-4)


def test_ef21_counts_who_sat_out_with_what_is_known_of_it():
    federation = Federation(build("fedavg", feedback="ef21"), keys=(1, 2))
    federation.round()
    known = {name: tensor.clone() for name, tensor in federation.server.memory.items()}
    before = federation.server.state
    federation.round(present=[0])
    read = transition.read_update(federation.config, before, federation.answers[0].payload)
    for name, tensor in federation.server.state.tensors.items():
        step = tensor - before.tensors[name]
        torch.testing.assert_close(step, known[key("ef21", name)] + read[name].dense() / 2, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=20)
def test_a_cycle_sends_every_element_once_and_names_no_position(period, seed):
    federation = Federation(build("cyclic", period=period), seed=seed)
    times = {name: np.zeros(shape) for name, shape in TABLE.shapes.items()}
    for _ in range(period):
        before = federation.server.state
        closed = federation.round()
        payloads = [answer.payload for answer in federation.answers] + [closed.broadcast.payload]
        first, second, down = (wire.decode(payload, TABLE) for payload in payloads)
        for decoded in (first, second, down):
            travels = set(decoded.travels.values()) - {wire.Travels.NOT}
            assert travels <= {wire.Travels.WHOLE if period == 1 else wire.Travels.DRAWN}
        for name, sparse in first.delta.items():
            where = np.arange(sparse.elements) if sparse.positions is None else sparse.positions.numpy()
            times[name].reshape(-1)[where] += 1
            if sparse.positions is not None:
                assert torch.equal(sparse.positions, second.delta[name].positions)
                assert torch.equal(sparse.positions, down.delta[name].positions)
        assert before.version + 1 == federation.server.version
    assert all((found == 1).all() for found in times.values())


def test_the_cyclic_server_needs_only_the_sum():
    federation = Federation(build("cyclic"), keys=(1, 2, 3)).rounds(4)
    server = federation.server
    tasks = [client.answer(server.task(client.name), lambda *_: None) for client in federation.clients]
    deltas = [transition.read_update(federation.config, server.state, update.payload) for update in tasks]
    contributions = [Contribution(str(place), delta, 1 / 3) for place, delta in enumerate(deltas)]
    total = average(server.state.tensors, deltas, [1 / 3] * 3)
    alone = transition.close(federation.config, server.state, contributions, server.memory, 3)
    summed = transition.close_sum(federation.config, server.state, total, 3, server.memory, 3)
    assert alone.payload == summed.payload
    assert alone.state.digest == summed.state.digest


def test_a_cyclic_step_is_the_mean_times_the_servers_rate():
    federation = Federation(build("cyclic", period=1))
    before = federation.server.state
    federation.round()
    for name, tensor in federation.server.state.tensors.items():
        changes = [(t.last[name] - t.seen[-1].start[name]) for t in federation.trainers.values()]
        torch.testing.assert_close(
            tensor - before.tensors[name], 1.6 * (changes[0] + changes[1]) / 2, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("name", ["fedavg", "fedsrd", "fedprox"])
def test_feedback_and_a_rescale_are_refused_together(name):
    with pytest.raises(ValidationError, match="sent twice"):
        build(name, sparsifier="importance", feedback="ef14", rescale="l1")


def test_an_aggregate_of_one_draw_keeps_it():
    federation = Federation(build("cyclic"))
    answers = [client.answer(federation.server.task(client.name), lambda *_: None) for client in federation.clients]
    deltas = [transition.read_update(federation.config, federation.server.state, a.payload) for a in answers]
    for name, mean in average(TABLE.shapes, deltas, [0.5, 0.5]).items():
        expected = add_weighted(torch.zeros(TABLE.shapes[name]), name, deltas, [0.5, 0.5])
        assert mean.draw == deltas[0][name].draw
        assert torch.equal(mean.dense(), expected)

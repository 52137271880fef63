"""`cyclic` through a whole federation, against the plain dense float64 reading of its formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TABLE, Federation, build

from fedsrd import rng, wire
from fedsrd.core.tensors import initial_tensors
from fedsrd.methods.cyclic import VELOCITY

NAMES = list(TABLE.shapes)
CLIENTS = 3
WHO = [[0, 1, 2], [0, 2], [1], [0, 1, 2], [2, 1], [0, 1, 2], [0]]


def step_of(key, number, name):
    """What the toy trainer moves a tensor by in a round, read off its definition."""
    random = np.random.default_rng([key, number])
    return {each: 0.05 * random.standard_normal(shape) for each, shape in TABLE.shapes.items()}[name]


def scheduled(name, period, number, seed):
    """The elements of the round's part: those whose word lies in the part's share of all words."""
    words = rng.words(int(np.prod(TABLE.shapes[name])), rng.integer(seed, "cycle"), "mask", name).astype(np.float64)
    part = number % period
    inside = (words >= round(part / period * 2**32)) & (words < round((part + 1) / period * 2**32))
    return inside.reshape(TABLE.shapes[name])


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([1.0, 0.7]),
    st.sampled_from([0.5, 1.6]),
    st.integers(0, 2**20),
)
@settings(max_examples=25, deadline=None)
def test_a_federation_is_its_formulas(period, period_a, momentum, decay, step, seed):
    """e <- decay e + delta; mean of the part over who is there; u <- mu u + eta mean; x <- x + u."""
    options = {"period": period, "period_a": period_a, "momentum": momentum, "decay": decay}
    optimizer = {"name": "sgd", "learning_rate": step}
    federation = Federation(build("cyclic", **options), (1, 2, 3), seed, optimizer=optimizer)
    x = {name: tensor.double().numpy() for name, tensor in initial_tensors(TABLE, seed).items()}
    u = {name: np.zeros(TABLE.shapes[name]) for name in NAMES}
    e = [{name: np.zeros(TABLE.shapes[name]) for name in NAMES} for _ in range(CLIENTS)]
    for number, present in enumerate(WHO, 1):
        federation.round(present)
        for name in NAMES:
            own = period_a if period_a and "lora_A" in name else period
            mask = scheduled(name, own, number, seed)
            mean = np.zeros(TABLE.shapes[name])
            for i in present:
                e[i][name] = decay * e[i][name] + step_of(i + 1, number, name)
                mean += np.where(mask, e[i][name], 0.0) / len(present)
                e[i][name] = np.where(mask, 0.0, e[i][name])
            u[name] = momentum * u[name] + step * mean
            x[name] = x[name] + u[name]
    model = federation.server.model()
    assert list(model) == NAMES
    for name in NAMES:
        np.testing.assert_allclose(model[name].double().numpy(), x[name], rtol=1e-4, atol=1e-5)
        for i, client in enumerate(federation.clients):
            kept = client.memory.kept[f"residual/{name}"].double().numpy()
            np.testing.assert_allclose(kept, e[i][name], rtol=1e-4, atol=1e-5)


def test_velocities_are_replicated_and_never_travel():
    federation = Federation(build("cyclic", momentum=0.5), coding=wire.WireOptions(values="ternary", threshold=1.0))
    plain = Federation(build("cyclic"), coding=wire.WireOptions(values="ternary", threshold=1.0))
    closed, other = federation.rounds(3).round(), plain.rounds(3).round()
    held = federation.server.state.tensors
    assert [name for name in held if name.endswith(VELOCITY)] == [name + VELOCITY for name in NAMES]
    assert len(closed.broadcast.payload) < 1.3 * len(other.broadcast.payload)
    # In a round that an element sits out it moves all the same.
    still = sum(int((federation.server.state.tensors[name + VELOCITY] == 0).sum()) for name in NAMES)
    assert still < 0.5 * TABLE.elements


@pytest.mark.parametrize("values", ["int2", "ternary"])
def test_nothing_is_lost_at_either_end(values):
    """What training changed is in the model, times the server's step, but for what both ends still hold."""
    method = build("cyclic", period=2, period_a=3, server_feedback="ef14")
    federation = Federation(method, coding=wire.WireOptions(values=values, threshold=1.3, block=8)).rounds(9)
    start = initial_tensors(TABLE, 0)
    for name in NAMES:
        changed = sum(step_of(key, number, name) for key in (1, 2) for number in range(1, 10)) / 2
        waiting = sum(client.memory.kept[f"residual/{name}"].double() for client in federation.clients) / 2
        lost = federation.server.memory[f"residual/{name}"].double()
        moved = federation.server.state.tensors[name].double() - start[name].double()
        expected = 1.6 * (torch.from_numpy(changed) - waiting) - lost
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_periods_are_bounded():
    for bad in ({"period": 0}, {"period": 1001}, {"period_a": -1}, {"momentum": 1.0}, {"decay": 0.0}):
        with pytest.raises(ValueError, match=r"greater|less"):
            build("cyclic", **bad)

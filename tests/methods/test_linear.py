"""Methods that need only the sum of the clients' weighted updates, as a server behind secure aggregation sees it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import build, config_of, moved

from fedsrd import methods
from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import GlobalState, SparseTensor
from fedsrd.errors import RecipeError
from fedsrd.federation import transition
from fedsrd.methods import Contribution

LINEAR = {
    "fedavg": {},
    "fedavg, sparse": {"sparsifier": "importance"},
    "fedprox": {},
    "ffa-lora": {},
    "fed-dare": {},
    "cyclic": {},
    "fedsrd-ef": {},
    "sparseloco": {},
    "fedsrd-e": {"decompose_at": "client"},
    "fedsrd-e, dense": {"decompose_at": "client", "sparsifier": "dense", "download": "none"},
    "fedsrd-e, important": {"decompose_at": "client", "download": "none", "sparsifier": "magnitude"},
    "fedsrd": {"decompose_at": "client", "project": False},
}
"""Rows of methods with the options under which they are linear."""
OPTIMIZERS = {
    "none": None,
    "nesterov": {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam", "learning_rate": 0.01},
}
SIZES = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 5))


def method_of(row, options=None):
    return build(row.split(",")[0], **(LINEAR[row] if options is None else options))


def state_of(table, seed, version, B_is_zero=False):
    """A state that so many rounds have led to."""
    random = np.random.default_rng([seed, 1])
    state = GlobalState(config_of(build("fedavg"), table).start().tensors, {}, version)
    return GlobalState(
        {
            name: tensor
            + (0 if B_is_zero and "lora_B" in name else 1)
            * torch.from_numpy(random.standard_normal(tensor.shape)).float()
            for name, tensor in state.tensors.items()
        },
        {},
        version,
    )


def updates(config, state, weights, seed):
    """What so many clients send of the same training: part of it common to all, part of it their own."""
    common = np.random.default_rng([seed, 2])
    target = moved(state.tensors, tuple(state.tensors), common, 0.3)
    sent = []
    for place, weight in enumerate(weights):
        context, _ = transition.client_context(config, state.version + 1, f"c{place}", None, {})
        plan = config.method.local_plan(state, context)
        own = moved(target, plan.trained, np.random.default_rng([seed, 3, place]), 0.1)
        after = {name: own[name] if name in plan.trained else tensor for name, tensor in plan.start.items()}
        sent.append(Contribution(f"c{place}", transition.update(config, plan, after, context)[0], weight))
    return sent


def summed(contributions):
    """sum_i p_i delta_i, dense, in float64 and rounded once: another summation than the server's own."""
    total = {}
    for one in contributions:
        for name, sparse in one.delta.items():
            total[name] = total.get(name, 0) + one.weight * sparse.dense().double()
    return {name: SparseTensor.from_dense(tensor.float()) for name, tensor in total.items()}


def shares(clients, seed):
    return np.random.default_rng([seed, 4]).dirichlet(np.full(clients, 3.0)).tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("row", LINEAR)
@settings(max_examples=12, deadline=None)
@given(SIZES, st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 1))
def test_the_sum_gives_the_same_broadcast(row, optimizer, sizes, clients, seed, version):
    out, inn, rank = sizes
    table = table_of([LoraModule("m", out, inn, rank), LoraModule("n", inn, out, rank)])
    config = config_of(method_of(row), table, optimizer=OPTIMIZERS[optimizer])
    state = state_of(table, seed, version)
    sent = updates(config, state, shares(clients, seed), seed)
    single = transition.close(config, state, sent, {}, clients + 1)
    whole = transition.close_sum(config, state, summed(sent), clients, {}, clients + 1)
    for name, shape in table.shapes.items():
        # A tensor of which nobody sent anything does not travel; in a sum it may, as zeros.
        expected, found = (
            closed.sent[name].dense() if name in closed.sent else torch.zeros(shape) for closed in (single, whole)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    for name, tensor in single.state.tensors.items():
        torch.testing.assert_close(whole.state.tensors[name], tensor, rtol=1e-5, atol=1e-5)
    assert whole.state.version == single.state.version == version + 1
    assert set(whole.memory) == set(single.memory)
    for name, tensor in single.memory.items():
        torch.testing.assert_close(whole.memory[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", LINEAR)
def test_several_rounds_of_sums(row):
    """Memory and state go on from sums alone."""
    table = table_of([LoraModule("m", 24, 16, 4)])
    config = config_of(method_of(row), table, optimizer=OPTIMIZERS["nesterov"])
    one = other = config.start()
    kept, remembered = {}, {}
    for number in range(1, 5):
        sent = updates(config, one, [0.2, 0.5, 0.3], number)
        closed = transition.close(config, one, sent, kept, 3)
        alike = transition.close_sum(config, other, summed(sent), 3, remembered, 3)
        one, kept = closed.state, closed.memory
        other, remembered = alike.state, alike.memory
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-4, atol=1e-5)


OTHERS = set(methods.names()) - {row.split(",")[0] for row in LINEAR} | {"fedsrd", "fedsrd-e"}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_method_that_is_not_linear_is_refused_by_name(name):
    config = config_of(build(name))
    assert not config.method.linear
    message = f"method.name = '{name}': {name} .*needs every client's own update, not their sum"
    with pytest.raises(RecipeError, match=message) as caught:
        transition.close_sum(config, config.start(), {}, 2, {}, 2)
    assert "Methods that fit: cyclic, fed-dare, fedavg, fedprox, fedsrd-ef, ffa-lora, sparseloco" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_decomposed_at_the_client_is_decomposed_at_the_server(sizes, clients, seed, version, B_is_zero):
    """sum_i p_i ((B + dB_i)(A + dA_i) - B A) A^+ = (W - B A) A^+, and its mirror image in even rounds."""
    out, inn, rank = sizes
    table = table_of([LoraModule("m", out, inn, rank), LoraModule("n", inn, out, rank)])
    state, weights = state_of(table, seed, version, B_is_zero), shares(clients, seed)
    options = {"sparsifier": "dense", "download": "none"}
    config = config_of(build("fedsrd-e", **options), table)
    at_server = transition.close(config, state, updates(config, state, weights, seed), {}, clients)
    config = config_of(build("fedsrd-e", **options, decompose_at="client"), table)
    sent = updates(config, state, weights, seed)
    found = [
        transition.close(config, state, sent, {}, clients),
        transition.close_sum(config, state, summed(sent), clients, {}, clients),
    ]
    factor = "A" if version % 2 else "B"
    for closed in found:
        assert set(closed.sent) == set(at_server.sent) == {f"{module}.lora_{factor}.weight" for module in "mn"}
        for name, sparse in at_server.sent.items():
            expected = sparse.dense().double()
            apart = torch.linalg.norm(closed.sent[name].dense().double() - expected)
            # Relative to what is added up: of one or two elements, clients' steps may cancel to next to nothing.
            size = sum(one.weight * torch.linalg.norm(one.delta[name].values.double()) for one in sent)
            assert apart <= 1e-5 * size, name


@pytest.mark.parametrize("number", [1, 2])
def test_a_client_that_decomposes_sends_this_rounds_factor_alone(number):
    config = config_of(build("fedsrd-e", decompose_at="client"))
    state = state_of(config.table, 0, number - 1)
    (one,) = updates(config, state, [1.0], 0)
    assert {name.split(".lora_")[1] for name in one.delta} == {"B.weight" if number == 1 else "A.weight"}
    assert len(one.delta) == 3
    assert all(0 < sparse.count < 0.3 * sparse.elements for sparse in one.delta.values())

"""Server optimizers against the dense float64 reading of core/server_optimizer.py's formulas, and with the methods."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy import TABLE, Federation, apart, build, config_of
from turns import answers, served

from fedsrd import methods, wire
from fedsrd.core.tensors import Draw, SparseTensor, digest
from fedsrd.errors import RecipeError
from fedsrd.federation.setup import optimizer_of
from fedsrd.loop import Aggregator
from fedsrd.methods import ServerOptimizer, ServerOptimizerOptions, capabilities
from fedsrd.methods.flasc import FLASC

SHAPES = st.lists(st.integers(1, 6), max_size=3).map(tuple)
SCALES = np.array([0.0, 1e-30, 1e-12, 1e-6, 1e-3, 1.0, 1e4, 1e12])
"""Of the elements of one tensor, side by side; the squares of the largest still fit float32."""
SGD = {
    "sgd": {"name": "sgd", "learning_rate": 0.7},
    "momentum": {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9},
    "nesterov": {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
}
ADAPTIVE = {
    "adam": {"name": "adam", "learning_rate": 0.01},
    "adam, corrected": {"name": "adam", "learning_rate": 0.01, "bias_correction": True},
    "yogi": {"name": "yogi", "learning_rate": 0.01},
    "yogi, corrected": {"name": "yogi", "learning_rate": 0.01, "bias_correction": True},
    "adagrad": {"name": "adagrad", "learning_rate": 0.01},
}
EVERY = {**SGD, **ADAPTIVE}


def reading(o, changes):
    """The steps of a tensor whose aggregates are `changes`, and how far float32 may be from each.

    Sums of opposite signs cancel, so what may be lost follows from the sum of their magnitudes.
    """
    m, v, u = 0.0, (0.0 if o.get("bias_correction") else o.get("epsilon", 1e-3) ** 2), 0.0
    size = 0.0
    rate, mu = o["learning_rate"], o.get("momentum", 0.0)
    beta1, beta2, tau = o.get("beta1", 0.9), o.get("beta2", 0.99), o.get("epsilon", 1e-3)
    for t, change in enumerate(changes, 1):
        if o["name"] == "sgd":
            u = mu * u + change
            size = mu * size + np.abs(change)
            step = rate * (change + mu * u) if o.get("nesterov") else rate * u
            yield step, rate * (np.abs(change) + size)
            continue
        m = beta1 * m + (1 - beta1) * change
        size = beta1 * size + (1 - beta1) * np.abs(change)
        if o["name"] == "adagrad":
            v = v + change**2
        elif o["name"] == "yogi":
            v = v - (1 - beta2) * change**2 * np.sign(v - change**2)
        else:
            v = beta2 * v + (1 - beta2) * change**2
        corrected = o.get("bias_correction")
        first, second = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
        root = np.sqrt(np.maximum(v, 0) / second) + tau
        yield rate * (m / first) / root, rate * (size / first) / root


def changes_of(shape, rounds, seed):
    """Aggregates of several rounds, float32; an element's scale may change from round to round."""
    random = np.random.default_rng(seed)
    return [(random.standard_normal(shape) * random.choice(SCALES, shape)).astype(np.float32) for _ in range(rounds)]


def steps_of(o, changes, name="t"):
    """What the optimizer makes of them, with what it keeps handed on as a method hands it on."""
    optimizer, memory = ServerOptimizer(ServerOptimizerOptions(**o)), {}
    for change in changes:
        aggregate = SparseTensor.from_dense(torch.as_tensor(change))
        step, kept = optimizer.step(name, aggregate, memory)
        memory = {**memory, **kept}
        yield step


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(EVERY)),
    SHAPES,
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.fixed_dictionaries(
        {
            "beta1": st.sampled_from([0.0, 0.5, 0.9, 0.99]),
            "beta2": st.sampled_from([0.5, 0.9, 0.99, 0.999]),
            "epsilon": st.sampled_from([1e-8, 1e-3, 1.0]),
        }
    ),
    st.sampled_from([1e-4, 0.01, 1.0, 10.0]),
)
def test_every_rule_is_its_formula(kind, shape, rounds, seed, decays, rate):
    o = {**EVERY[kind], "learning_rate": rate}
    if o["name"] != "sgd":
        o |= decays
    changes = changes_of(shape, rounds, seed)
    expected = reading(o, [change.astype(np.float64) for change in changes])
    for found, (step, size) in zip(steps_of(o, changes), expected, strict=True):
        assert found.shape == shape
        assert found.positions is None
        dense = found.dense().double().numpy()
        assert dense.shape == shape
        assert np.isfinite(dense).all()
        assert (np.abs(dense - step) <= 1e-5 * size + 1e-37).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 0.99))
def test_momentum_and_nesterov_by_hand(seed, mu):
    """FedAvgM: u = mu u + D, x += eta u. DiLoCo: x += eta (D + mu u)."""
    D = changes_of((5,), 3, seed)
    D = [np.clip(change, -10, 10).astype(np.float64) for change in D]
    u1, u2, u3 = D[0], mu * D[0] + D[1], mu * mu * D[0] + mu * D[1] + D[2]
    given = {"name": "sgd", "learning_rate": 0.5, "momentum": mu}
    found = [step.dense().double().numpy() for step in steps_of(given, [d.astype(np.float32) for d in D])]
    np.testing.assert_allclose(found, [0.5 * u for u in (u1, u2, u3)], rtol=1e-5, atol=1e-5)
    ahead = steps_of({**given, "nesterov": True}, [d.astype(np.float32) for d in D])
    expected = [0.5 * (d + mu * u) for d, u in zip(D, (u1, u2, u3), strict=True)]
    np.testing.assert_allclose([step.dense().double().numpy() for step in ahead], expected, rtol=1e-5, atol=1e-5)


def test_adams_first_corrected_step_is_the_sign():
    """m / (1 - beta1) = D and v / (1 - beta2) = D^2: eta D / (|D| + tau)."""
    o = {"name": "adam", "learning_rate": 0.1, "epsilon": 1e-8, "bias_correction": True}
    change = np.array([3.0, -0.02, 0.0, 7e5], np.float32)
    (step,) = steps_of(o, [change])
    torch.testing.assert_close(step.dense(), torch.tensor([0.1, -0.1, 0.0, 0.1]))
    # Without it v starts at tau^2, and the step is (1 - beta1) D / (sqrt(beta2 tau^2 + (1 - beta2) D^2) + tau).
    (step,) = steps_of({"name": "adam", "learning_rate": 0.1, "epsilon": 0.5}, [change])
    expected = 0.1 * 0.1 * change / (np.sqrt(0.99 * 0.25 + 0.01 * change.astype(np.float64) ** 2) + 0.5)
    np.testing.assert_allclose(step.dense(), expected, rtol=1e-5)


@given(st.sampled_from([0.0, 0.5, 0.99]), st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=2, max_size=8))
def test_yogis_second_moment_never_has_no_root(beta2, values):
    """Where rounding takes v below zero, its root is zero and the step stays finite."""
    o = {"name": "yogi", "learning_rate": 0.01, "beta2": beta2}
    for corrected in (False, True):
        for step in steps_of({**o, "bias_correction": corrected}, np.array(values, np.float32)):
            assert bool(torch.isfinite(step.dense()).all())


@pytest.mark.parametrize("kind", sorted(EVERY))
def test_tensors_do_not_mix_and_nothing_that_goes_in_is_changed(kind):
    optimizer = ServerOptimizer(ServerOptimizerOptions(**EVERY[kind]))
    changes = {name: changes_of((4, 3), 3, seed) for seed, name in enumerate(("a", "b.momentum"))}
    alone = {name: [step.dense() for step in steps_of(EVERY[kind], own, name)] for name, own in changes.items()}
    memory = {}
    for number in (1, 2, 3):
        before, following = digest(memory), dict(memory)
        for name, own in changes.items():
            aggregate = SparseTensor.from_dense(torch.from_numpy(own[number - 1].copy()))
            step, kept = optimizer.step(name, aggregate, memory)
            assert torch.equal(step.dense(), alone[name][number - 1])
            np.testing.assert_array_equal(aggregate.dense(), own[number - 1])
            following |= kept
        assert digest(memory) == before
        memory = following


@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0.01, 100))
def test_sgd_without_momentum_keeps_a_sparse_aggregate_sparse(elements, seed, rate):
    """Positions, and the seed that they were drawn with, stay: a payload need not list them."""
    whole = torch.from_numpy(np.random.default_rng(seed).standard_normal((elements, 2))).float()
    sparse = SparseTensor.from_draw(whole, "t", Draw(seed, 0.3))
    optimizer = ServerOptimizer(ServerOptimizerOptions(name="sgd", learning_rate=rate))
    step, kept = optimizer.step("t", sparse, {})
    assert not kept
    assert step.positions is sparse.positions
    assert step.draw == sparse.draw
    torch.testing.assert_close(step.values, sparse.values * rate)
    # Everything else moves elements that nobody sent in this round.
    for o in (SGD["momentum"], *ADAPTIVE.values()):
        assert ServerOptimizer(ServerOptimizerOptions(**o)).step("t", sparse, {})[0].positions is None


def test_a_sparse_broadcast_stays_one():
    method, config = build("fed-dare"), config_of(build("fed-dare"))
    sent = answers(method, config.start(), 1, (1, 2), (0.5, 0.5))
    plain, _ = served(method, config.start(), sent)
    moved, _ = served(method, config.start(), sent, optimizer=ServerOptimizer(ServerOptimizerOptions(**SGD["sgd"])))
    for name, sparse in moved.items():
        assert torch.equal(sparse.positions, plain[name].positions)
        assert 0 < sparse.count < sparse.elements
        torch.testing.assert_close(sparse.values, 0.7 * plain[name].values)


# With methods.

COMPOSED = ["fedavg", "fedprox", "fedsrd", "fedsrd-e", "fed-dare", "ffa-lora", "fedicu-style", "scaffold", "feddyn"]


@pytest.mark.parametrize("values", ["float32", "int4"])
@pytest.mark.parametrize("kind", sorted(EVERY))
@pytest.mark.parametrize("name", [*COMPOSED, "flasc", "fedsa-lora"])
def test_replicas_stay_equal_with_any_optimizer(name, kind, values):
    """`round` holds every client's digest against the server's."""
    federation = Federation(build(name), coding=wire.WireOptions(values=values), optimizer=EVERY[kind]).rounds(3)
    assert federation.server.version == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in federation.server.model().values())
    assert federation.server.digest != digest_at_another_rate(name, values)
    if values == "float32":
        again = Federation(build(name), optimizer=EVERY[kind]).rounds(3)
        assert federation.server.digest == again.server.digest


@cache
def digest_at_another_rate(name, values):
    optimizer = {"name": "sgd", "learning_rate": 0.123}
    return Federation(build(name), coding=wire.WireOptions(values=values), optimizer=optimizer).rounds(3).server.digest


@pytest.mark.parametrize("name", COMPOSED)
def test_sgd_at_rate_one_is_no_optimizer(name):
    with_it = Federation(build(name), optimizer={"name": "sgd", "learning_rate": 1.0}).rounds(3)
    assert with_it.server.digest == Federation(build(name)).rounds(3).server.digest


@pytest.mark.parametrize("name", ["fedavg", "ffa-lora"])
@pytest.mark.parametrize("kind", sorted(EVERY))
def test_a_method_that_averages_takes_the_formulas_steps(name, kind):
    federation = Federation(build(name), optimizer=EVERY[kind])
    start = {key: tensor.double().numpy() for key, tensor in federation.server.model().items()}
    means = {key: [] for key in start}
    for _ in range(4):
        before = {key: tensor.double() for key, tensor in federation.server.model().items()}
        federation.round()
        for key in start:
            trained = [trainer.last[key].double() for trainer in federation.trainers.values()]
            means[key].append(((trained[0] + trained[1]) / 2 - before[key]).numpy())
    for key, tensor in federation.server.model().items():
        if name == "ffa-lora" and "lora_A" in key:
            np.testing.assert_array_equal(tensor, start[key].astype(np.float32))
            continue
        expected = start[key] + sum(step for step, _ in reading(EVERY[kind], means[key]))
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ["fedsrd", "fedsrd-e"])
def test_fedsrds_optimizer_comes_before_the_downlinks_draw(name, number):
    """The step that is thinned at random is the optimizer's, and the positions are those without one."""
    state = config_of(build(name)).start()
    random = np.random.default_rng(2)
    state = state.following(
        {
            key: tensor + torch.from_numpy(random.standard_normal(tensor.shape)).float()
            for key, tensor in state.tensors.items()
        }
    )
    sent = answers(build(name), state, number, (1, 2), (0.5, 0.5))
    optimizer = ServerOptimizer(ServerOptimizerOptions(**SGD["nesterov"]))
    whole, _ = served(build(name, download="none"), state, sent, number)
    thin, kept = served(build(name), state, sent, number, optimizer=optimizer)
    assert set(kept) == {f"optimizer/momentum/{key}" for key in whole}
    for key, sparse in thin.items():
        # The first step of Nesterov is eta (1 + mu) D.
        step = 0.7 * 1.9 * whole[key].dense()
        torch.testing.assert_close(sparse.values, step.view(-1)[sparse.positions] / 0.2, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kept[f"optimizer/momentum/{key}"], whole[key].dense())
        assert sparse.draw == served(build(name), state, sent, number)[0][key].draw


def test_scaffolds_control_variates_are_no_steps():
    plain, moved = Federation(build("scaffold")), Federation(build("scaffold"), optimizer=ADAPTIVE["adam"])
    plain.round()
    moved.round()
    for key in TABLE.shapes:
        control = f"{key}.control"
        assert torch.equal(plain.server.state.tensors[control], moved.server.state.tensors[control])
        assert not torch.equal(plain.server.model()[key], moved.server.model()[key])
    assert not any("control" in key for key in moved.server.memory)


def test_feddyn_keeps_its_h_beside_the_moments():
    federation = Federation(build("feddyn"), optimizer=ADAPTIVE["adam"]).rounds(2)
    assert set(federation.server.memory) == {
        f"{kind}/{key}" for kind in ("h", "optimizer/first", "optimizer/second") for key in TABLE.shapes
    }


def test_flascs_own_optimizer_is_adam_written_out_by_hand():
    """Kingma and Ba's algorithm 1 on theta, with FLASC's rate of 2e-3 and an epsilon of 1e-3."""
    federation = Federation(build("flasc", up=1.0))
    assert federation.config.optimizer.options is FLASC.default_optimizer
    theta = {key: tensor.double().numpy() for key, tensor in federation.server.model().items()}
    start = {key: tensor.copy() for key, tensor in theta.items()}
    m, v = ({key: 0 * tensor for key, tensor in theta.items()} for _ in range(2))
    for t in (1, 2, 3, 4):
        held = {key: tensor.double().numpy() for key, tensor in federation.server.state.tensors.items()}
        federation.round()
        for key in theta:
            trained = [trainer.last[key].double().numpy() for trainer in federation.trainers.values()]
            g = (trained[0] + trained[1]) / 2 - held[key]
            m[key] = 0.9 * m[key] + 0.1 * g
            v[key] = 0.999 * v[key] + 0.001 * g**2
            m_hat, v_hat = m[key] / (1 - 0.9**t), v[key] / (1 - 0.999**t)
            theta[key] = theta[key] + 2e-3 * m_hat / (np.sqrt(v_hat) + 1e-3)
        for key, tensor in federation.server.model().items():
            np.testing.assert_allclose(tensor.double().numpy(), theta[key], rtol=0, atol=5e-7)
            assert np.abs(theta[key] - start[key]).max() > 1e-3
    # The same, named in the recipe, is the same.
    named = Federation(build("flasc", up=1.0), optimizer=FLASC.default_optimizer.model_dump()).rounds(4)
    assert named.server.digest == federation.server.digest


def test_a_chosen_optimizer_takes_the_place_of_flascs():
    options = ServerOptimizerOptions(**SGD["sgd"])
    assert optimizer_of(build("flasc"), options).options is options
    assert optimizer_of(build("flasc"), None).options is FLASC.default_optimizer
    assert optimizer_of(build("fedavg"), None) is None
    own, other = Federation(build("flasc")).rounds(2), Federation(build("flasc"), optimizer=SGD["sgd"]).rounds(2)
    assert apart(own.weights(), other.weights()) > 1e-4


def test_what_the_optimizer_keeps_is_the_servers_memory():
    """So it is in every checkpoint, and only there."""
    for kind, o in EVERY.items():
        federation = Federation(build("fedavg"), optimizer=o).rounds(2)
        parts = {"sgd": (), "momentum": ("momentum",), "nesterov": ("momentum",)}.get(kind, ("first", "second"))
        parts += ("steps",) if o.get("bias_correction") else ()
        assert set(federation.server.memory) == {f"optimizer/{part}/{key}" for part in parts for key in TABLE.shapes}
        assert set(federation.server.state.tensors) == set(TABLE.shapes)


# What is refused.


@pytest.mark.parametrize("name", methods.names())
def test_methods_that_make_no_step_refuse_it(name):
    makes_none = {"flexlora", "flora", "fedex-lora", "local", "centralised"}
    if name not in makes_none:
        capabilities.check(build(name), capabilities.SERVER_OPTIMIZER)
        return
    with pytest.raises(
        RecipeError, match="makes no step that a server optimizer could change.*Methods that fit: .*fedavg"
    ):
        capabilities.check(build(name), capabilities.SERVER_OPTIMIZER)


def test_a_loop_of_ones_own_takes_it_and_is_refused_it_alike():
    start = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.zeros(4, 2)}
    table = {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
    Aggregator(start, method="fedsrd", server_optimizer=table)
    for method, options in (("flexlora", {}), ("fedsrd", {"server": "svd"})):
        with pytest.raises(RecipeError, match="makes no step"):
            Aggregator(start, method=method, server_optimizer=table, **options)
        Aggregator(start, method=method, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd", "nesterov": True}, "nesterov = true: expected a momentum above 0"),
        ({"name": "adam", "momentum": 0.9}, "momentum and nesterov belong to sgd; adam has beta1"),
        ({"name": "yogi", "nesterov": True}, "momentum and nesterov belong to sgd; yogi has beta1"),
        ({"name": "adagrad", "momentum": 0.1}, "momentum and nesterov belong to sgd; adagrad has beta1"),
        ({"name": "sgd", "bias_correction": True}, "bias_correction = true: sgd has none; adam and yogi do"),
        ({"name": "adagrad", "bias_correction": True}, "bias_correction = true: adagrad has none"),
        ({"name": "rmsprop"}, "name"),
        ({"name": "sgd", "learning_rate": 0.0}, "learning_rate"),
        ({"name": "sgd", "learning_rate": 101.0}, "learning_rate"),
        ({"name": "sgd", "learning_rate": float("nan")}, "learning_rate"),
        ({"name": "sgd", "momentum": 1.0}, "momentum"),
        ({"name": "adam", "beta1": -0.1}, "beta1"),
        ({"name": "adam", "beta2": 1.0}, "beta2"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon"),
        ({"name": "adam", "decay": 0.1}, "decay"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ServerOptimizerOptions(**{"learning_rate": 0.1, **options})


def test_a_rate_must_be_said():
    with pytest.raises(ValidationError, match="learning_rate"):
        ServerOptimizerOptions(name="sgd")


@pytest.mark.parametrize("rule", ["adam", "yogi"])
def test_the_bias_correction_counts_a_tensors_own_steps(rule):
    """A tensor that moves in every other round, as FedSRD's factors do, is corrected as one that moves in each."""
    o = {"name": rule, "learning_rate": 1.0, "bias_correction": True}
    changes = changes_of((3, 2), 5, 7)
    expected = [step.dense() for step in steps_of(o, changes)]
    optimizer, memory, found = ServerOptimizer(ServerOptimizerOptions(**o)), {}, []
    for change in changes:
        step, kept = optimizer.step("t", SparseTensor.from_dense(torch.from_numpy(change)), memory)
        found.append(step.dense())
        _, other = optimizer.step("elsewhere", SparseTensor.from_dense(torch.from_numpy(change)), {**memory, **kept})
        memory = {**memory, **kept, **other}
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))

"""Rounds in which a client lies: robust rules leave it out, or keep it from moving the rest."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_run import run
from toy import build
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation import setup, transition
from fedsrd.federation.robust import Robust
from fedsrd.federation.session import Assets
from fedsrd.federation.transition import FederationConfig
from fedsrd.runs.records import read_rounds

LIAR = "c4"
RULES = ["krum", "multi-krum", "geometric-median", "trimmed-mean", "median"]


def five(tree, tmp_path, **participation):
    """Five clients with like data."""
    tree["clients"] = []
    for place in range(5):
        rows = [{"instruction": f"add {i} and {i}", "response": f"it is {2 * i}"} for i in range(8)]
        file = tmp_path / f"c{place}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tree["clients"].append({"name": f"c{place}", "data": {"source": str(file)}})
    tree["training"] |= {"steps": 2, "learning_rate": 1e-3}
    tree["participation"] = {"norm_bound": 0, **participation}
    tree["rounds"] = 2
    return tree


@pytest.fixture
def lying(monkeypatch):
    """The last client sends the opposite of its update, ten times as long."""
    update = transition.update

    def lied(config, plan, after, context):
        delta, kept = update(config, plan, after, context)
        if context.client == LIAR:
            delta = {n: SparseTensor(s.shape, s.positions, s.values * -10, s.draw) for n, s in delta.items()}
        return delta, kept

    monkeypatch.setattr(transition, "update", lied)


@pytest.mark.parametrize("method", ["fedavg", "fedsrd", "cyclic"])
@pytest.mark.parametrize("rule", RULES)
def test_a_liar_does_not_move_the_rest(tiny_recipe, tmp_path, lying, rule, method):
    """Beside what the same rule makes of honest clients, the model ends much nearer than without a rule."""
    if method == "fedsrd" and rule in ("trimmed-mean", "median"):
        return
    tree = five(tiny_recipe, tmp_path)
    tree["method"] = {"name": method} | ({"damping": 0.1} if method == "fedsrd" else {})

    def model(name, **participation):
        tree["participation"] = {"norm_bound": 0, **participation}
        summary, _ = run(tree, tmp_path / name)
        return summary.final.in_domain

    undefended = model("undefended")
    defended = model("defended", robust=rule)
    tree["clients"].pop()
    honest = model("honest")
    assert defended < undefended
    assert abs(defended - honest) < 0.5 * (undefended - honest)
    if rule in ("krum", "multi-krum"):
        for record in read_rounds(tmp_path / "defended" / "rounds.jsonl")[1:]:
            assert f"left out by {rule}" in record.rejected[LIAR]


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "geometric-median"])
def test_a_length_that_overflows_is_left_out_and_the_round_closes(tiny_recipe, tmp_path, monkeypatch, rule):
    update = transition.update

    def endless(config, plan, after, context):
        delta, kept = update(config, plan, after, context)
        if context.client == LIAR:
            delta = {n: SparseTensor(s.shape, s.positions, s.values * 1e24, s.draw) for n, s in delta.items()}
        return delta, kept

    monkeypatch.setattr(transition, "update", endless)
    tree = five(tiny_recipe, tmp_path, robust=rule)
    tree["method"] = {"name": "fedavg"}
    run(tree, tmp_path / "run")
    for record in read_rounds(tmp_path / "run" / "rounds.jsonl")[1:]:
        assert f"left out by {rule}" in record.rejected[LIAR]


def test_too_few_updates_for_the_rule_is_a_round_that_does_not_count(tiny_recipe, tmp_path, monkeypatch):
    tree = five(tiny_recipe, tmp_path, robust="krum", attempts=1)
    update = transition.update

    def failing(config, plan, after, context):
        if context.client == LIAR:
            raise ValueError("no update")
        return update(config, plan, after, context)

    monkeypatch.setattr(transition, "update", failing)
    with pytest.raises(FederationError, match="4 of at least 5 clients sent a usable update"):
        run(tree, tmp_path / "run")


def test_an_aggregate_by_element_of_fewer_than_it_needs_is_refused():
    with pytest.raises(FederationError, match="2 updates: trimmed-mean needs at least 3"):
        Robust("trimmed-mean", 1).total(FederationConfig(build("fedavg"), TensorTable(()), 0), 1, [{}, {}])


@pytest.mark.parametrize("method", ["fedavg", "cyclic"])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_who_sends_other_elements_moves_no_others(tiny_recipe, tmp_path, monkeypatch, rule, method):
    """Half of the elements, each at its neighbour's place: the round closes, and each element is the clients' own."""
    update = transition.update

    def lied(config, plan, after, context):
        delta, kept = update(config, plan, after, context)
        if context.client == LIAR:
            delta = {name: shifted(sparse) for name, sparse in delta.items()}
        return delta, kept

    def shifted(sparse):
        places = torch.arange(0, sparse.elements, 2)
        return SparseTensor(sparse.shape, places, torch.full((len(places),), 0.5))

    tree = five(tiny_recipe, tmp_path, robust=rule)
    tree["method"] = {"name": method}
    honest, _ = run(tree, tmp_path / "honest")
    monkeypatch.setattr(transition, "update", lied)
    lying, _ = run(tree, tmp_path / "lying")
    assert not any(record.rejected for record in read_rounds(tmp_path / "lying" / "rounds.jsonl"))
    assert abs(lying.final.in_domain - honest.final.in_domain) < 0.05


@given(st.integers(0, 99), st.sampled_from(["median", "trimmed-mean"]), st.sampled_from([None, Draw(7, 0.5)]))
def test_the_aggregate_by_element_is_that_of_dense_updates(seed, rule, draw):
    random = np.random.default_rng(seed)
    shape = (4, 3)
    config = FederationConfig(build("fedavg"), TensorTable((TensorSpec("A", shape),)), 0)
    whole = [torch.from_numpy(random.standard_normal(shape)).float() for _ in range(5)]
    masks = [torch.from_numpy(random.random(shape) < 0.7) for _ in whole]
    deltas = [{"A": SparseTensor.from_mask(w, m)} for w, m in zip(whole, masks, strict=True)]
    dense = np.sort(np.stack([(w * m).double().numpy() for w, m in zip(whole, masks, strict=True)]), 0)
    wanted = dense[2] if rule == "median" else dense[1:4].mean(0)
    if draw is not None:
        mask = np.zeros(12, bool)
        mask[draw.positions("A", 12).numpy()] = True
        wanted = np.where(mask.reshape(shape), wanted, 0)
    with mock.patch.object(type(config.method), "elements", return_value={"A": draw}):
        found = Robust(rule, 1).total(config, 1, deltas)["A"]
    assert found.draw == draw
    assert np.allclose(found.dense().numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"participation": {"robust": "krum", "byzantine": 2}}, "5 clients are asked in a round; expected at least 7"),
        (
            {"method": {"name": "fedavg"}, "participation": {"robust": "median", "fraction": 0.4}},
            "2 clients are asked in a round; expected at least 3",
        ),
        ({"method": {"name": "flasc"}, "participation": {"robust": "median"}}, "flasc"),
        ({"method": {"name": "fedsrd"}, "participation": {"robust": "trimmed-mean"}}, 'take "multi-krum"'),
        ({"weighting": "examples"}, "how many examples it has is a client's own word"),
        ({"participation": {"robust": "krum", "minimum": 2}}, "keeps 1 of 5 updates, so no round could count"),
        (
            {"participation": {"robust": "multi-krum", "minimum": 5}},
            "keeps 4 of 5 updates, so no round could count; expected a minimum of at most 4",
        ),
        (
            {"method": {"name": "scaffold"}, "participation": {"robust": "geometric-median"}},
            'every client counts alike.*take "krum" or "multi-krum"',
        ),
        ({"method": {"name": "local"}, "participation": {"robust": "krum"}}, "local ends with a model"),
        (
            {"method": {"name": "fedavg"}, "privacy": {"secure_aggregation": {"threshold": 3}}},
            "the server sees the sum of the updates and can judge none of them",
        ),
        ({"method": {"name": "fedavg"}, "wire": {"sum": {}}}, "with wire.sum: it needs each update as it is"),
        (
            {"method": {"name": "fedavg"}, "privacy": {"clients": {"noise_multiplier": 1.0}}},
            r"with \[privacy.clients\]: it needs each update",
        ),
    ],
)
def test_what_cannot_hold_is_refused(tiny_recipe, tmp_path, changes, message):
    tree = five(tiny_recipe, tmp_path, robust="krum")
    tree |= changes
    with pytest.raises(RecipeError, match=message):
        setup.check(recipes.parse(tree), Watch(), Assets())


@pytest.mark.parametrize("rule", ["krum", "geometric-median"])
def test_clients_of_several_ranks_have_no_distance(tiny_recipe, tmp_path, rule):
    tree = five(tiny_recipe, tmp_path, robust=rule)
    tree["method"] = {"name": "flexlora"}
    tree["clients"][1]["rank"] = 1
    with pytest.raises(RecipeError, match="the rank of c1 is not lora.rank"):
        setup.check(recipes.parse(tree), Watch(), Assets())


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_krum_leaves_a_liar_out_where_every_client_counts_alike(tiny_recipe, tmp_path, lying, method):
    """Nothing of it is in the state, a control variate neither."""
    tree = five(tiny_recipe, tmp_path, robust="multi-krum")
    tree["method"] = {"name": method}
    run(tree, tmp_path / "run")
    for record in read_rounds(tmp_path / "run" / "rounds.jsonl")[1:]:
        assert list(record.rejected) == [LIAR]

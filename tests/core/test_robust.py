"""Robust aggregates against dense float64 readings of their formulas."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core import robust
from fedsrd.core.lora import LoraModule, tensor_name
from fedsrd.core.tensors import SparseTensor

MODULES = (LoraModule("a", 7, 5, 2), LoraModule("b", 4, 9, 3))


def made(seed, clients, missing):
    """A state with two LoRA pairs and a plain tensor, and sparse changes of it; some tensors a client does not send."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return torch.from_numpy(random.standard_normal(shape)).float()

    state = {}
    for module in MODULES:
        state[tensor_name(module.name, "B")] = draw(module.out_features, module.rank)
        state[tensor_name(module.name, "A")] = draw(module.rank, module.in_features)
    state["scale"] = draw(6)
    deltas = []
    for _ in range(clients):
        delta = {}
        for name, tensor in state.items():
            if random.random() < missing:
                continue
            whole = draw(*tensor.shape) * 0.3
            delta[name] = SparseTensor.from_mask(whole, torch.from_numpy(random.random(tensor.shape) < 0.6))
        deltas.append(delta)
    return state, deltas


def moved(state, delta):
    """One client's change of the full weights, and of what is no LoRA factor, as one vector in float64."""
    after = {n: t.double() + (delta[n].dense().double() if n in delta else 0) for n, t in state.items()}
    parts = []
    for module in MODULES:
        B, A = (tensor_name(module.name, factor) for factor in "BA")
        parts.append((after[B] @ after[A] - state[B].double() @ state[A].double()).reshape(-1))
    return torch.cat([*parts, after["scale"] - state["scale"].double()]).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([0.0, 0.4, 1.0]))
def test_the_gram_matrix_is_that_of_full_weights(seed, clients, missing):
    state, deltas = made(seed, clients, missing)
    whole = np.stack([moved(state, delta) for delta in deltas])
    products = robust.gram(state, deltas).numpy()
    assert np.allclose(products, whole @ whole.T, rtol=1e-4, atol=1e-4)
    apart = np.linalg.norm(whole[:, None] - whole[None, :], axis=2)
    assert np.allclose(robust.distances(torch.from_numpy(products)).numpy(), apart, atol=2e-2)


points = st.integers(5, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(-20, 20), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(points, st.integers(0, 3))
def test_krum_is_the_sum_over_the_nearest(rows, liars):
    values = np.array(rows, dtype=float)
    if len(values) < 2 * liars + 3:
        return
    apart = np.linalg.norm(values[:, None] - values[None, :], axis=2)
    scores = robust.krum(torch.from_numpy(apart), liars).numpy()
    for place, row in enumerate(apart):
        others = sorted(np.delete(row, place) ** 2)
        assert scores[place] == pytest.approx(sum(others[: len(values) - liars - 2]), abs=1e-6)
    kept = robust.chosen(torch.from_numpy(scores), 2)
    assert kept == sorted(sorted(range(len(scores)), key=lambda place: (scores[place], place))[:2])


@settings(deadline=None)
@given(points)
def test_no_step_away_from_the_geometric_median_is_nearer_to_all(rows):
    values = np.array(rows, dtype=float)
    weights = np.random.default_rng(0).dirichlet(np.full(len(values), 5.0))
    found = robust.geometric_median(torch.from_numpy(values @ values.T), weights.tolist(), rounds=2000).numpy()
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()

    def total(point):
        return (weights * np.linalg.norm(values - point, axis=1)).sum()

    centre = found @ values
    best = total(centre)
    for step in itertools.product((-0.1, 0, 0.1), repeat=3):
        assert total(centre + np.array(step)) >= best - 0.02 * max(best, 1)


def test_updates_that_are_alike_keep_their_weights():
    assert robust.geometric_median(torch.zeros(3, 3, dtype=torch.float64), [0.2, 0.3, 0.5]).tolist() == [0.2, 0.3, 0.5]


@pytest.mark.parametrize("far", [1e1, 1e4, 1e7, 1e9, 1e12])
@pytest.mark.parametrize(("honest", "liars"), [(4, 1), (5, 4), (9, 7)])
def test_a_minority_moves_the_geometric_median_no_further_for_being_farther_away(far, honest, liars):
    """Its breakdown point is a half; where f of n lie it stays within 2 (n - f) / (n - 2 f) radii of the honest."""
    random = np.random.default_rng(0)
    true = random.standard_normal((honest, 50)) * 0.1 + 1
    values = np.concatenate([true, np.full((liars, 50), -far)])
    found = robust.geometric_median(torch.from_numpy(values @ values.T), [1 / len(values)] * len(values)).numpy()
    radius = np.linalg.norm(true - true.mean(0), axis=1).max()
    moved = np.linalg.norm(found @ values - true.mean(0))
    assert moved <= 2 * honest / (honest - liars) * radius * 1.01


@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 9))
def test_the_trimmed_mean_and_the_median(clients, trim, seed):
    values = np.random.default_rng(seed).standard_normal((clients, 11))
    assert np.allclose(robust.median(torch.from_numpy(values)).numpy(), np.median(values, axis=0))
    if clients > 2 * trim:
        ordered = np.sort(values, axis=0)[trim : clients - trim]
        assert np.allclose(robust.trimmed_mean(torch.from_numpy(values), trim).numpy(), ordered.mean(0))

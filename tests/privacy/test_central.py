"""Noise on the sum of clipped updates, against a plain float64 reading."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.federation.transition import Codec, FederationConfig, client_context, update
from fedsrd.privacy.central import CentralNoise, clipped, noised_sum, norm
from fedsrd.recipe import chosen_method
from fedsrd.wire import WireOptions

SECRET = b"c" * 32
SHAPES = {"a": (5, 3), "b": (40,)}


def delta(seed, scale, draw=None):
    torch.manual_seed(seed)
    tensors = {name: scale * torch.randn(shape) for name, shape in SHAPES.items()}
    if draw is None:
        return {name: SparseTensor.from_dense(tensor) for name, tensor in tensors.items()}
    return {name: SparseTensor.from_draw(tensor, name, draw) for name, tensor in tensors.items()}


def noise(sigma=1.0, clip=1.0, secret=SECRET):
    return CentralNoise(sigma, clip, lambda: secret)


@given(
    scales=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    clip=st.floats(1e-4, 1e4),
    drawn=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_sum_is_that_of_the_clipped_updates(scales, clip, drawn, seed):
    draw = Draw(3, 0.4) if drawn else None
    deltas = [delta(seed + place, scale, draw) for place, scale in enumerate(scales)]
    raw = np.random.default_rng(seed).random(len(scales)) + 0.1
    weights = (raw / raw.sum()).tolist()
    found = noised_sum(deltas, weights, noise(1e-9, clip), 1)
    for name, shape in SHAPES.items():
        expected = np.zeros(math.prod(shape))
        for one, weight in zip(deltas, weights, strict=True):
            whole = math.sqrt(sum(float((s.values.double() ** 2).sum()) for s in one.values()))
            expected += weight * min(1, clip / whole) * one[name].dense().double().numpy().ravel()
        np.testing.assert_allclose(found[name].dense().numpy().ravel(), expected, rtol=1e-4, atol=1e-5 * clip)
        assert found[name].draw == draw


def test_noise_is_on_every_element_that_travels_and_no_other():
    draw = Draw(3, 0.5)
    sent = [delta(place, 0.0, draw) for place in range(4)]
    # Some number types leave out what is zero: their places are no secret, and have noise too.
    gone = SparseTensor(SHAPES["b"], torch.zeros(0, dtype=torch.int64), torch.zeros(0), draw)
    sent[1] = {**sent[1], "b": gone}
    found = noised_sum(sent, [0.1, 0.2, 0.3, 0.4], noise(2.0, 5.0), 1)
    for name, shape in SHAPES.items():
        assert torch.equal(found[name].positions, draw.positions(name, math.prod(shape)))
        assert bool((found[name].values != 0).all())
    dense = noised_sum([delta(0, 0.0)] * 2, [0.5, 0.5], noise(2.0, 5.0), 1)
    many = torch.cat([dense["b"].values, found["b"].values / 0.8])
    assert 3.0 < float(many.std()) < 7.0


def test_a_round_that_repeats_has_the_same_noise_and_any_other_sum_another():
    sent, weights = [delta(1, 1.0), delta(2, 1.0)], [0.5, 0.5]
    once = noised_sum(sent, weights, noise(), 1)
    again = noised_sum(sent, weights, noise(), 1)
    assert torch.equal(once["a"].values, again["a"].values)
    plain = noised_sum(sent, weights, noise(1e-12), 1)
    others = [
        noised_sum(sent, weights, noise(), 2),
        noised_sum([delta(1, 1.0), delta(3, 1.0)], weights, noise(), 1),
        noised_sum(sent, weights, noise(secret=b"d" * 32), 1),
    ]
    for other in others:
        apart = (other["b"].values - plain["b"].values) - (once["b"].values - plain["b"].values)
        assert float(apart.abs().max()) > 0.05


def test_elements_that_a_client_chose_are_refused():
    chosen = {"b": SparseTensor(SHAPES["b"], torch.tensor([1, 4]), torch.ones(2))}
    with pytest.raises(ValueError, match="not places"):
        noised_sum([chosen], [1.0], noise(), 1)
    with pytest.raises(ValueError, match="different elements"):
        noised_sum([delta(0, 1.0, Draw(1, 0.5)), delta(0, 1.0, Draw(2, 0.5))], [0.5, 0.5], noise(), 1)


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "int4", "ternary"])
@given(scale=st.floats(1e-3, 1e3), clip=st.floats(1e-2, 1e2), seed=st.integers(0, 9))
@settings(max_examples=15)
def test_what_a_clipped_client_sends_is_within_the_clip_whatever_the_number_type_rounds(values, scale, clip, seed):
    table = TensorTable(tuple(TensorSpec(name, shape) for name, shape in SHAPES.items()))
    threshold = {"threshold": 0.7} if values == "ternary" else {}
    codec = Codec(table, WireOptions(values=values, **threshold), 7, clip)
    wanted = delta(seed, scale)
    found = codec.received(wanted)
    # The server clips what a few tries have left.
    assert norm(found) <= clip * 1.05
    free = Codec(table, WireOptions(values=values, **threshold), 7).received(wanted)
    if norm(free) <= clip:
        assert all(torch.equal(found[name].dense(), free[name].dense()) for name in free)
    elif norm(wanted) > clip:
        assert norm(found) > 0.3 * clip


def test_feedback_keeps_what_the_clip_takes():
    method = chosen_method({"name": "fedavg", "sparsifier": "cyclic", "period": 2, "feedback": "ef14"})
    method = method[0](method[1])
    table = TensorTable((TensorSpec("w", (40,)),))
    config = FederationConfig(method, table, 3, clip=0.5)
    context, codec = client_context(config, 1, "a", None, {})
    after = {"w": torch.linspace(-1, 1, 40)}
    sent, memory = update(config, LocalPlan({"w": torch.zeros(40)}, ("w",)), after, context)
    arrived = codec.received(sent)
    assert norm(arrived) <= 0.5
    (rest,) = memory.values()
    torch.testing.assert_close(rest.view(-1) + arrived["w"].dense(), after["w"])


@given(scale=st.floats(0, 1e8), most=st.floats(1e-6, 1e6))
def test_a_clipped_update_is_within_the_bound(scale, most):
    found = clipped(delta(0, scale), most)
    assert norm(found) <= most
    assert norm(found) >= 0.999 * min(most, norm(delta(0, scale)))

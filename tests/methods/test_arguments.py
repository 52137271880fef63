"""What a method does with its arguments, whichever method it is; and FedAvg against the plain weighted mean."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import apart, product

from fedsrd import methods
from fedsrd.core.factors import LoraPair, ModuleShape, ShapeTable, Slot, SparseTensor, digest, initial_factors
from fedsrd.errors import RecipeError
from fedsrd.methods import ClientStep, Method, MethodOptions, ServerStep, Step
from fedsrd.methods.method import register

TABLE = ShapeTable((ModuleShape("wide", 4, 12, 3), ModuleShape("tall", 12, 2, 3), ModuleShape("one", 1, 1, 1)))
EVERY = pytest.mark.parametrize("name", methods.names())
FEDERATED = pytest.mark.parametrize("name", [name for name in methods.names() if not methods.get(name).reference])
SRD = pytest.mark.parametrize("name", ["fedsrd", "fedsrd-e"])


def build(name, **options):
    kind = methods.get(name)
    return kind(kind.Options(**options))


def state_after(seed):
    """Factors with a B that is not zero."""
    random = np.random.default_rng(seed)
    return {
        name: LoraPair(*(t + torch.from_numpy(random.standard_normal(t.shape)).float() for t in pair))
        for name, pair in initial_factors(TABLE, 0).items()
    }


def trained(state, seed, method, round_number):
    random = np.random.default_rng(seed)
    return {
        name: LoraPair(
            *(
                t
                + (f in method.trained(round_number)) * torch.from_numpy(0.1 * random.standard_normal(t.shape)).float()
                for f, t in zip("BA", pair, strict=True)
            )
        )
        for name, pair in state.items()
    }


def updates(method, state, round_number, seeds=(1, 2, 3)):
    return [
        method.client_update(state, trained(state, seed, method, round_number), ClientStep(round_number, f"c{seed}", 0))
        for seed in seeds
    ]


def product_after(method, state, sent, weights, step):
    """base + B A of the model after a round."""
    broadcast = method.server_update(state, sent, weights, step)
    plain = Step(step.round, step.seed)
    after = method.model(method.apply(state, broadcast, plain), step.memory)
    return product(after, dict(method.base_change(state, broadcast, plain)))


def snapshot(delta):
    return {slot: (sparse.shape, sparse.dense().numpy().tobytes()) for slot, sparse in delta.items()}


@EVERY
@pytest.mark.parametrize("round_number", [1, 2])
def test_nothing_that_goes_in_is_changed(name, round_number):
    method, state = build(name), state_after(0)
    before, after = digest(state), trained(state, 1, method, round_number)
    kept = digest(after)
    method.client_update(state, after, ClientStep(round_number, "c", 0))
    assert digest(after) == kept
    sent = updates(method, state, round_number)
    copies = [snapshot(delta) for delta in sent]
    broadcast = method.server_update(state, sent, [0.2, 0.3, 0.5], ServerStep(round_number, 0))
    copy = snapshot(broadcast)
    method.apply(state, broadcast, Step(round_number, 0))
    list(method.base_change(state, broadcast, Step(round_number, 0)))
    assert digest(state) == before
    assert [snapshot(delta) for delta in sent] == copies
    assert snapshot(broadcast) == copy


@EVERY
@pytest.mark.parametrize("round_number", [1, 2])
def test_what_comes_out_fits_the_table(name, round_number):
    method, state = build(name), state_after(0)
    sent = updates(method, state, round_number)
    broadcast = method.server_update(state, sent, [0.2, 0.3, 0.5], ServerStep(round_number, 0))
    assert bool(broadcast) is not methods.get(name).reference
    tables = [TABLE] * 3 + [method.downlink_table(TABLE, 3)]
    for delta, table in zip((*sent, broadcast), tables, strict=True):
        for slot, sparse in delta.items():
            assert sparse.shape == table.shapes[slot]
            assert sparse.values.dtype == torch.float32
            assert sparse.positions is None or bool((sparse.positions.diff() > 0).all())


@FEDERATED
@pytest.mark.parametrize("round_number", [1, 2])
def test_the_order_of_clients_does_not_matter_and_their_weights_do(name, round_number):
    method, state = build(name), state_after(0)
    sent, weights = updates(method, state, round_number), [0.2, 0.3, 0.5]
    one = product_after(method, state, sent, weights, ServerStep(round_number, 0))
    turned = product_after(method, state, sent[::-1], weights[::-1], ServerStep(round_number, 0))
    other = product_after(method, state, sent, weights[::-1], ServerStep(round_number, 0))
    assert apart(one, turned) < 1e-3
    assert apart(one, other) > 1e-4


@FEDERATED
def test_a_weight_near_zero_counts_for_nothing(name):
    if name == "flasc":
        pytest.skip("Adam's first step is the sign of the gradient, however small")
    method, state = build(name), state_after(0)
    alone, other = updates(method, state, 1, (1, 2))
    one = product_after(method, state, [alone], [1.0], ServerStep(1, 0))
    both = product_after(method, state, [alone, other], [1.0 - 1e-12, 1e-12], ServerStep(1, 0))
    assert apart(one, both) < 1e-3


def test_fedavg_is_the_weighted_mean_of_each_factor():
    method, state, weights = build("fedavg"), state_after(0), [0.7, 0.1, 0.2]
    sent = updates(method, state, 1)
    found = method.server_update(state, sent, weights, ServerStep(1, 0))
    assert list(found) == list(TABLE.shapes)
    for slot, sparse in found.items():
        expected = sum(w * d[slot].dense().double().numpy() for w, d in zip(weights, sent, strict=True))
        assert sparse.positions is None
        np.testing.assert_allclose(sparse.dense(), expected, rtol=1e-5, atol=1e-7)


def test_fedavg_of_one_client_sends_back_what_it_sent_to_the_bit():
    method, state = build("fedavg"), state_after(0)
    (sent,) = updates(method, state, 1, (4,))
    assert snapshot(method.server_update(state, [sent], [1.0], ServerStep(1, 0))) == snapshot(sent)


def test_fedavg_counts_a_slot_that_was_not_sent_as_zero():
    method, state = build("fedavg"), state_after(0)
    sent = {Slot("tall", "A"): SparseTensor((3, 2), torch.tensor([1]), torch.tensor([8.0]))}
    found = method.server_update(state, [sent, {}], [0.25, 0.75], ServerStep(1, 0))
    assert found[Slot("tall", "A")].dense().flatten().tolist() == [0, 2, 0, 0, 0, 0]
    assert Slot("wide", "B") not in found


@SRD
def test_one_client_that_moved_only_b_is_followed_in_an_odd_round(name):
    """W - B A = dB A, and dB A A^+ = dB where A has full row rank: nothing is lost. Rank-r keeps rank-r products."""
    method, state = build(name, download_sparsity=0.0), state_after(0)
    dB = torch.from_numpy(np.random.default_rng(9).standard_normal((4, 3))).float()
    sent = {Slot("wide", "B"): SparseTensor.from_dense(dB)}
    found = method.server_update(state, [sent], [1.0], ServerStep(1, 0))[Slot("wide", "B")].dense()
    assert torch.linalg.norm(found - dB) < 1e-5 * torch.linalg.norm(dB)
    # and dA likewise in an even round, where B has full column rank
    dA = torch.from_numpy(np.random.default_rng(9).standard_normal((3, 2))).float()
    sent = {Slot("tall", "A"): SparseTensor.from_dense(dA)}
    found = method.server_update(state, [sent], [1.0], ServerStep(2, 0))[Slot("tall", "A")].dense()
    assert torch.linalg.norm(found - dA) < 1e-5 * torch.linalg.norm(dA)


@SRD
def test_the_two_variants_agree_where_the_clients_agree(name):
    """Equal clients have a mean weight of rank r: the projection has nothing to drop."""
    state, method, plain = state_after(0), build(name, download_sparsity=0.0), build("fedsrd-e", download_sparsity=0.0)
    (sent,) = updates(method, state, 1, (1,))
    for round_number in (1, 2):
        step = ServerStep(round_number, 0)
        one = method.server_update(state, [sent, sent], [0.5, 0.5], step)
        other = plain.server_update(state, [sent], [1.0], step)
        for slot in one:
            torch.testing.assert_close(one[slot].dense(), other[slot].dense(), rtol=1e-4, atol=1e-6)


def test_the_projection_matters_where_clients_differ():
    state = state_after(0)
    # Nearly dense: with one element a matrix, the mean of three clients may itself have rank r.
    sent = updates(build("fedsrd", alpha=0.0, upper=0.0), state, 2)
    one, other = (
        build(name, download_sparsity=0.0).server_update(state, sent, [1 / 3] * 3, ServerStep(2, 0))
        for name in ("fedsrd", "fedsrd-e")
    )
    assert float((one[Slot("wide", "A")].dense() - other[Slot("wide", "A")].dense()).abs().max()) > 1e-4


@EVERY
def test_a_method_names_itself_and_its_options_are_frozen(name):
    kind = methods.get(name)
    assert kind.name == name
    assert kind.summary
    options = kind.Options()
    with pytest.raises(ValidationError):
        kind.Options(no_such_option=1)
    for field, value in options.model_dump().items():
        with pytest.raises(ValidationError):
            setattr(options, field, value)
    for round_number in (1, 2):
        assert set(kind(options).trained(round_number)) <= {"A", "B"}


@SRD
@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("alpha", [0.0, 0.95], [1.0, -0.01, math.nan, "much"]),
        ("upper", [0.0, 0.999], [1.0, -0.01, math.inf, math.nan]),
        ("rescale", ["l1", "none"], ["L1", "l2", None, ""]),
        ("rescale_cap", [1.0, 1e6], [0.99, -1.0, math.nan]),
        ("download_sparsity", [0.0, 0.99], [1.0, -0.2, math.nan]),
        ("cutoff", [0.0, 0.1], [1.0, -1e-9, math.nan]),
        ("damping", [0.0, 0.5], [-1e-9, math.nan, None]),
    ],
)
def test_every_option_keeps_to_its_range(name, field, good, bad):
    kind = methods.get(name).Options
    for value in good:
        assert getattr(kind(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError, match=field):
            kind(**{field: value})


def test_the_registry_is_sorted_complete_and_refuses_a_name_twice():
    assert methods.names() == sorted(methods.names())
    assert {"fedavg", "fedsrd", "fedsrd-e"} <= set(methods.names())
    known = methods.names()
    with pytest.raises(ValueError, match="two methods are called 'fedavg'"):
        register(type("Second", (Method,), {"name": "fedavg", "summary": "x", "Options": MethodOptions}))
    assert methods.names() == known
    with pytest.raises(RecipeError, match="method.name = 'zzz': no such method") as caught:
        methods.get("zzz")
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in known)

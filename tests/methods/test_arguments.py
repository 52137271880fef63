"""What a method does with its arguments, whichever method it is; and FedAvg against the plain weighted mean."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy import apart, build, config_of, moved, product
from turns import answered, answers, applied, served

from fedsrd import methods
from fedsrd.core.lora import LoraModule, table_of, tensor_name
from fedsrd.core.tensors import GlobalState, SparseTensor, digest
from fedsrd.errors import RecipeError
from fedsrd.methods import (
    ClientContext,
    Contribution,
    Method,
    MethodOptions,
    RoundContext,
    ServerContext,
    ServerOptimizer,
    ServerOptimizerOptions,
    register,
)

TABLE = table_of((LoraModule("wide", 4, 12, 3), LoraModule("tall", 12, 2, 3), LoraModule("one", 1, 1, 1)))
EVERY = pytest.mark.parametrize("name", methods.names())
FEDERATED = pytest.mark.parametrize("name", [name for name in methods.names() if not methods.get(name).reference])
SRD = pytest.mark.parametrize("name", ["fedsrd", "fedsrd-e"])


def state_after(seed, method=None):
    """A state with a B that is not zero, and whatever else the method replicates."""
    random = np.random.default_rng(seed)
    start = config_of(method or build("fedavg"), TABLE).start()
    return GlobalState(
        {
            name: tensor + torch.from_numpy(random.standard_normal(tensor.shape)).float()
            for name, tensor in start.tensors.items()
        }
    )


def updates(method, state, round_number, seeds=(1, 2, 3), weights=(0.2, 0.3, 0.5)):
    return answers(method, state, round_number, seeds, weights, size=0.1)


def product_after(method, state, contributions, round_number=1, optimizer=None):
    """base + B A of the model after a round."""
    broadcast, memory = served(method, state, contributions, round_number, optimizer=optimizer)
    after = applied(method, state, broadcast, round_number)
    return product(method.model(after, memory), after.base_delta)


def weighed(contributions, weights):
    """The same updates with other weights."""
    return [replace(one, weight=weight) for one, weight in zip(contributions, weights, strict=True)]


def snapshot(delta):
    return {name: (sparse.shape, sparse.dense().numpy().tobytes()) for name, sparse in delta.items()}


@EVERY
@pytest.mark.parametrize("round_number", [1, 2])
def test_nothing_that_goes_in_is_changed(name, round_number):
    """Neither the state, nor what clients trained and sent, nor what either side kept."""
    method = build(name)
    state = state_after(0, method)
    before = state.digest
    memories = {key: answered(method, state, 1, key, size=0.1)[1] for key in (1, 2, 3)}
    kept = {key: digest(memory) for key, memory in memories.items()}
    sent = []
    for key, weight in zip(memories, (0.2, 0.3, 0.5), strict=True):
        context = ClientContext(round_number, 0, f"c{key}", memory=memories[key])
        plan = method.local_plan(state, context)
        after = moved(plan.start, plan.trained, np.random.default_rng(key), 0.1)
        digests = digest(plan.start), digest(after)
        if plan.gradient_hook is not None:
            plan.gradient_hook({tensor: torch.ones_like(after[tensor]) for tensor in plan.trained})
        sent.append(Contribution(context.client, method.client_update(plan, after, context)[0], weight))
        assert (digest(plan.start), digest(after)) == digests
    copies = [snapshot(one.delta) for one in sent]
    _, memory = served(method, state, sent, 1)
    remembered = digest(memory)
    broadcast, _ = served(method, state, sent, round_number, memory)
    copy = snapshot(broadcast)
    applied(method, state, broadcast, round_number)
    assert state.digest == before == digest(state.tensors, state.base_delta)
    assert [snapshot(one.delta) for one in sent] == copies
    assert snapshot(broadcast) == copy
    assert {key: digest(found) for key, found in memories.items()} == kept
    assert digest(memory) == remembered
    # So the same again gives the same.
    assert snapshot(served(method, state, sent, round_number, memory)[0]) == copy


@EVERY
@pytest.mark.parametrize("round_number", [1, 2])
def test_what_comes_out_fits_the_table(name, round_number):
    method = build(name)
    config, state = config_of(method, TABLE), state_after(0, method)
    sent = updates(method, state, round_number)
    broadcast, _ = served(method, state, sent, round_number)
    assert bool(broadcast) is not methods.get(name).reference
    tables = [config.uplink_table] * 3 + [config.downlink_table(3)]
    for delta, table in zip((*(one.delta for one in sent), broadcast), tables, strict=True):
        for tensor, sparse in delta.items():
            assert sparse.shape == table.shapes[tensor]
            assert sparse.values.dtype == torch.float32
            assert sparse.positions is None or bool((sparse.positions.diff() > 0).all())


@FEDERATED
@pytest.mark.parametrize("round_number", [1, 2])
def test_the_order_of_clients_does_not_matter_and_their_weights_do(name, round_number):
    method = build(name)
    state = state_after(0, method)
    sent = updates(method, state, round_number)
    one = product_after(method, state, sent, round_number)
    turned = product_after(method, state, sent[::-1], round_number)
    other = product_after(method, state, weighed(sent, [0.5, 0.3, 0.2]), round_number)
    assert apart(one, turned) < 1e-3
    assert apart(one, other) > 1e-4


@FEDERATED
def test_a_weight_near_zero_counts_for_nothing(name):
    if name == "feddyn":
        pytest.skip("its h counts every client that took part alike, as the paper has it")
    method = build(name)
    state = state_after(0, method)
    # Adam's first step is the sign of the gradient, however small.
    optimizer = ServerOptimizer(ServerOptimizerOptions(name="sgd", learning_rate=1.0)) if name == "flasc" else None
    alone, other = updates(method, state, 1, (1, 2), (1.0 - 1e-12, 1e-12))
    one = product_after(method, state, weighed([alone], [1.0]), optimizer=optimizer)
    both = product_after(method, state, [alone, other], optimizer=optimizer)
    assert apart(one, both) < 1e-3


def test_fedavg_is_the_weighted_mean_of_each_factor():
    method, state, weights = build("fedavg"), state_after(0), [0.7, 0.1, 0.2]
    sent = updates(method, state, 1, weights=weights)
    found, kept = served(method, state, sent)
    assert list(found) == list(TABLE.shapes)
    assert not kept
    for name, sparse in found.items():
        expected = sum(w * one.delta[name].dense().double().numpy() for w, one in zip(weights, sent, strict=True))
        assert sparse.positions is None
        np.testing.assert_allclose(sparse.dense(), expected, rtol=1e-5, atol=1e-7)


def test_fedavg_of_one_client_sends_back_what_it_sent_to_the_bit():
    method, state = build("fedavg"), state_after(0)
    (sent,) = updates(method, state, 1, (4,), (1.0,))
    assert snapshot(served(method, state, [sent])[0]) == snapshot(sent.delta)


def test_fedavg_counts_a_tensor_that_was_not_sent_as_zero():
    method, state = build("fedavg"), state_after(0)
    sent = {tensor_name("tall", "A"): SparseTensor((3, 2), torch.tensor([1]), torch.tensor([8.0]))}
    found, _ = served(method, state, [Contribution("c1", sent, 0.25), Contribution("c2", {}, 0.75)])
    assert found[tensor_name("tall", "A")].dense().flatten().tolist() == [0, 2, 0, 0, 0, 0]
    assert tensor_name("wide", "B") not in found


@SRD
def test_one_client_that_moved_only_b_is_followed_in_an_odd_round(name):
    """W - B A = dB A, and dB A A^+ = dB where A has full row rank: nothing is lost. Rank-r keeps rank-r products."""
    method, state = build(name, download_sparsity=0.0), state_after(0)
    B, A = tensor_name("wide", "B"), tensor_name("tall", "A")
    dB = torch.from_numpy(np.random.default_rng(9).standard_normal((4, 3))).float()
    sent = Contribution("c", {B: SparseTensor.from_dense(dB)}, 1.0)
    found = served(method, state, [sent], 1)[0][B].dense()
    assert torch.linalg.norm(found - dB) < 1e-5 * torch.linalg.norm(dB)
    # and dA likewise in an even round, where B has full column rank
    dA = torch.from_numpy(np.random.default_rng(9).standard_normal((3, 2))).float()
    sent = Contribution("c", {A: SparseTensor.from_dense(dA)}, 1.0)
    found = served(method, state, [sent], 2)[0][A].dense()
    assert torch.linalg.norm(found - dA) < 1e-5 * torch.linalg.norm(dA)


@SRD
def test_the_two_variants_agree_where_the_clients_agree(name):
    """Equal clients have a mean weight of rank r: the projection has nothing to drop."""
    state, method, plain = state_after(0), build(name, download_sparsity=0.0), build("fedsrd-e", download_sparsity=0.0)
    (sent,) = updates(method, state, 1, (1,), (1.0,))
    for round_number in (1, 2):
        one, _ = served(method, state, weighed([sent, sent], [0.5, 0.5]), round_number)
        other, _ = served(plain, state, [sent], round_number)
        for tensor in one:
            torch.testing.assert_close(one[tensor].dense(), other[tensor].dense(), rtol=1e-4, atol=1e-6)


def test_the_projection_matters_where_clients_differ():
    state, A = state_after(0), tensor_name("wide", "A")
    # Nearly dense: with one element a matrix, the mean of three clients may itself have rank r.
    sent = updates(build("fedsrd", alpha=0.0, upper=0.0), state, 2, weights=[1 / 3] * 3)
    one, other = (served(build(name, download_sparsity=0.0), state, sent, 2)[0] for name in ("fedsrd", "fedsrd-e"))
    assert float((one[A].dense() - other[A].dense()).abs().max()) > 1e-4


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
    state = state_after(0, kind(options))
    for round_number in (1, 2):
        plan = kind(options).local_plan(state, ClientContext(round_number, 0, "c"))
        assert set(plan.trained) <= set(plan.start) == set(TABLE.shapes)


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
        ("sparsifier", ["dense", "importance", "magnitude", "random"], ["none", "Dense", None]),
        ("decompose_at", ["server"], ["both", "", None]),
    ],
)
def test_every_option_keeps_to_its_range(name, field, good, bad):
    kind = methods.get(name).Options
    for value in good:
        assert getattr(kind(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError, match=field):
            kind(**{field: value})


@pytest.mark.parametrize(
    "wrong", [("fedsrd", {}), ("fedsrd-e", {"project": True}), ("fedsrd-e", {"server": "svd"})], ids=str
)
def test_clients_decompose_only_where_that_is_the_same_step(wrong):
    name, options = wrong
    assert build("fedsrd-e", decompose_at="client").linear
    assert build("fedsrd", decompose_at="client", project=False).linear
    with pytest.raises(
        ValidationError, match='decompose_at = "client": needs server = "alternate" and project = false'
    ):
        build(name, decompose_at="client", **options)


def test_contexts_are_read_only():
    plan = build("fedavg").local_plan(state_after(0), ClientContext(1, 0, "c"))
    for context in (RoundContext(1, 0), ClientContext(1, 0), ServerContext(1, 0), Contribution("c", {}, 1.0)):
        with pytest.raises(FrozenInstanceError):
            setattr(context, next(iter(type(context).__dataclass_fields__)), 2)
    with pytest.raises(FrozenInstanceError):
        plan.proximal = 1.0


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

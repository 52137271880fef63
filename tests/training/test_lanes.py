"""Clients trained in one pass: each comes out as if it had trained alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core import lora as lora_view
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import digest, initial_tensors
from fedsrd.data.prompt import Encoded
from fedsrd.errors import ModelError
from fedsrd.training import lanes
from fedsrd.training.models import AdaptedModel, lora_config, tensor_table
from fedsrd.training.options import BaseOptions, TrainingOptions
from fedsrd.training.sft import LocalTrainer, PooledTrainer

OPTIONS = TrainingOptions(steps=3, batch_size=2, accumulation=2, learning_rate=1e-2, weight_decay=0.1)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def examples(lane, count=9):
    """Of every length, prompts of one token and responses of one among them; lanes differ in both."""
    return [
        Encoded(
            [5 + (7 * i + lane + j) % 40 for j in range(1 + (i * (lane + 1)) % 6)],
            [60 + (3 * i + j + 11 * lane) % 90 for j in range(1 + (i + lane) % 5)],
        )
        for i in range(count)
    ]


def load(tiny_model, dtype="float32", **more):
    lora = lora_config(4, 6, 0.0, "all-linear")
    return AdaptedModel.load(str(tiny_model), lora, BaseOptions(dtype=dtype, device="cpu", **more))


@pytest.fixture(scope="module")
def adapted(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def table(tiny_model):
    return tensor_table(str(tiny_model), lora_config(4, 6, 0.0, "all-linear"))


def started(table, seed):
    """A start whose B is not zero."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=random)
        for name, tensor in initial_tensors(table, seed).items()
    }


def everything(start, **more):
    return LocalPlan(start, tuple(start), **more)


def trainers_of(adapted, count, options=OPTIONS):
    return [LocalTrainer(adapted, examples(lane), options, f"c{lane}", 3) for lane in range(count)]


def alone(trainers, plans, number=2):
    told = [[] for _ in trainers]
    found = [
        trainer.train(plan, number, lambda step, loss, own=own: own.append((step, loss)))
        for trainer, plan, own in zip(trainers, plans, told, strict=True)
    ]
    return found, told


def together(trainers, plans, number=2):
    told = [[] for _ in trainers]
    assert lanes.can_train_together(trainers, plans)
    shows = [lambda step, loss, own=own: own.append((step, loss)) for own in told]
    return lanes.train_together(trainers, plans, number, shows), told


def assert_same(found, expected, **close):
    for (one, one_told), (other, other_told) in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert list(one.tensors) == list(other.tensors)
        for name, tensor in one.tensors.items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(
                tensor, other.tensors[name], **(close or CLOSE), msg=lambda m, n=name: f"{n} {m}"
            )
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert [step for step, _ in one_told] == [step for step, _ in other_told]
        assert [loss for _, loss in one_told] == pytest.approx([loss for _, loss in other_told], rel=1e-4)


@pytest.mark.parametrize("most", [1e9, 1.0, 1e-3])
def test_each_lane_is_the_client_alone_whatever_is_clipped(adapted, table, most):
    trainers = trainers_of(adapted, 3, OPTIONS.model_copy(update={"max_grad_norm": most}))
    plans = [everything(started(table, seed)) for seed in range(3)]
    assert_same(together(trainers, plans), alone(trainers, plans))


@given(st.data())
@settings(max_examples=8)
def test_lanes_of_any_shape(adapted, table, data):
    count = data.draw(st.integers(2, 5), "lanes")
    steps, batch, accumulation = (data.draw(st.integers(1, 3)) for _ in range(3))
    options = TrainingOptions(steps=steps, batch_size=batch, accumulation=accumulation, learning_rate=1e-3)
    token = st.integers(3, 200)
    sequences = st.builds(Encoded, st.lists(token, min_size=1, max_size=9), st.lists(token, max_size=7))
    trainers = [
        LocalTrainer(adapted, data.draw(st.lists(sequences, min_size=1, max_size=4)), options, f"c{lane}", 1)
        for lane in range(count)
    ]
    plans = [everything(started(table, lane), proximal=0.1 * lane) for lane in range(count)]
    found, expected = together(trainers, plans, 1), alone(trainers, plans, 1)
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4, abs=1e-6)
        # Where a gradient is next to nothing, Adam's step is its sign: as large as the rate, and as good as random.
        apart = max(float((one.tensors[name] - other.tensors[name]).abs().max()) for name in one.tensors)
        assert apart <= 2.01 * steps * options.learning_rate


def test_the_gradients_are_those_of_a_plain_float64_loop(tiny_model, table):
    """One example and one lane at a time, all logits, the weights W0 + s B A written out, autograd in float64."""
    from transformers import AutoModelForCausalLM

    options = TrainingOptions(steps=1, batch_size=2, accumulation=2, learning_rate=1e-3, max_grad_norm=1e9)
    trainers = trainers_of(load(tiny_model), 3, options)
    starts = [started(table, seed) for seed in range(3)]
    seen = [{} for _ in starts]

    def noting(own):
        return lambda gradients: own.update({name: tensor.clone() for name, tensor in gradients.items()})

    plans = [everything(start, gradient_hook=noting(own)) for start, own in zip(starts, seen, strict=True)]
    found, _ = together(trainers, plans)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    frozen = {name: weight.detach() for name, weight in plain.named_parameters()}
    for trainer, start, own, one in zip(trainers, starts, seen, found, strict=True):
        factors = {name: tensor.double().requires_grad_() for name, tensor in start.items()}
        weights = dict(frozen)
        for module, pair in lora_view.pairs_of(factors).items():
            weights[f"{module}.weight"] = frozen[f"{module}.weight"] + 6 / 4 * pair.B @ pair.A
        loss, tokens = 0.0, 0
        for example in trainer.examples_of(2, 4):
            ids = torch.tensor([[*example.prompt, *example.response]])
            logp = torch.func.functional_call(plain, weights, (ids,)).logits[0].log_softmax(-1)
            at = len(example.prompt) - 1
            loss = loss - sum(logp[at + i, token] for i, token in enumerate(example.response))
            tokens += len(example.response)
        loss = loss / tokens
        gradients = torch.autograd.grad(loss, list(factors.values()))
        assert one.loss == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in zip(factors, gradients, strict=True):
            torch.testing.assert_close(own[name].double(), gradient, rtol=1e-4, atol=1e-6)


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([1e-6, 1.0, 1e12]),
)
def test_clipping_is_each_lanes_own(rows, most):
    gradients = torch.tensor(rows)
    expected = []
    for row in gradients:
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], most)
        expected.append(parameter.grad)
    lanes.clip(gradients, most)
    torch.testing.assert_close(gradients, torch.stack(expected))


def test_it_repeats_itself_and_leaves_model_and_generator_as_they_were(adapted, table):
    trainers, plans = trainers_of(adapted, 4), [everything(started(table, seed)) for seed in range(4)]
    before, _ = alone(trainers[:1], plans[:1])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    once, _ = together(trainers, plans)
    assert torch.equal(torch.rand(3), expected)
    twice, _ = together(trainers, plans)
    assert [digest(one.tensors) for one in once] == [digest(one.tensors) for one in twice]
    after, _ = alone(trainers[:1], plans[:1])
    assert digest(after[0].tensors) == digest(before[0].tensors)
    assert not any("forward" in module.__dict__ for module in adapted.model.modules() if hasattr(module, "lora_A"))


def test_frozen_factors_a_changed_base_hooks_and_proximal_terms(adapted, table):
    starts = [started(table, seed) for seed in range(2)]
    names = tuple(name for name in starts[0] if lora_view.split(name)[1] == "B")
    modules = lora_view.modules_of(table)[:3]
    seen = [[], [], [], []]

    def hook(own, factor):
        def change(gradients):
            own.append(list(gradients))
            for gradient in gradients.values():
                gradient.mul_(factor)

        return change

    def plans(first):
        return [
            LocalPlan(
                start,
                names,
                {m.name: torch.full((m.out_features, m.in_features), 0.01) for m in modules},
                proximal=mu,
                gradient_hook=hook(seen[first + lane], 0.5 + lane),
            )
            for lane, (start, mu) in enumerate(zip(starts, (0.0, 0.3), strict=True))
        ]

    trainers = trainers_of(adapted, 2)
    found, expected = together(trainers, plans(0)), alone(trainers, plans(2))
    assert_same(found, expected)
    assert seen[:2] == seen[2:]
    for one, start in zip(found[0], starts, strict=True):
        assert all(torch.equal(one.tensors[name], start[name]) for name in start if name not in names)
        assert not any(one.tensors[name] is start[name] for name in start)


@pytest.mark.parametrize("more", [{"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_other_ways_to_load_the_base(tiny_model, table, more):
    trainers = trainers_of(load(tiny_model, **more), 2, OPTIONS.model_copy(update={"learning_rate": 1e-4}))
    plans = [everything(started(table, seed)) for seed in range(2)]
    (found, told), (expected, expected_told) = together(trainers, plans), alone(trainers, plans)
    close = {"rtol": 0, "atol": 6e-4} if "dtype" in more else CLOSE
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2 if "dtype" in more else 1e-4)
        for name in one.tensors:
            torch.testing.assert_close(one.tensors[name], other.tensors[name], **close)
    assert [len(own) for own in told] == [len(own) for own in expected_told]


def test_a_loss_that_explodes_ends_that_clients_round_only(adapted, table):
    starts = [started(table, seed) for seed in range(3)]
    starts[1] = {name: tensor * 1e30 for name, tensor in starts[1].items()}
    trainers, plans = trainers_of(adapted, 3), [everything(start) for start in starts]
    (found, told), (expected, expected_told) = together(trainers, plans), alone(trainers, plans)
    assert len(told[1]) == len(expected_told[1]) == 1
    assert not math.isfinite(found[1].loss)
    assert not all(bool(torch.isfinite(tensor).all()) for tensor in found[1].tensors.values())
    assert_same((found[::2], told[::2]), (expected[::2], expected_told[::2]))


def test_who_cannot_train_together(adapted, tiny_model, table):
    start = started(table, 0)
    plan, trainers = everything(start), trainers_of(adapted, 2)
    assert lanes.can_train_together(trainers, [plan, plan])
    assert not lanes.can_train_together(trainers[:1], [plan])
    assert not lanes.can_train_together([trainers[0], object()], [plan, plan])
    assert not lanes.can_train_together([PooledTrainer(trainers, "all"), trainers[0]], [plan, plan])
    other = trainers_of(adapted, 1, OPTIONS.model_copy(update={"learning_rate": 1.0}))
    assert not lanes.can_train_together([trainers[0], *other], [plan, plan])
    packing = trainers_of(adapted, 2, OPTIONS.model_copy(update={"packing": True}))
    assert not lanes.can_train_together(packing, [plan, plan])
    dropping = AdaptedModel.load(
        str(tiny_model), lora_config(4, 6, 0.1, "all-linear"), BaseOptions(dtype="float32", device="cpu")
    )
    assert not lanes.can_train_together(trainers_of(dropping, 2), [plan, plan])
    assert not lanes.can_train_together([trainers[0], *trainers_of(dropping, 1)], [plan, plan])
    module = lora_view.modules_of(table)[0]
    base = {module.name: torch.ones(module.out_features, module.in_features)}
    for differs in (LocalPlan(start, plan.trained[1:]), everything(start, base_delta=base)):
        assert not lanes.can_train_together(trainers, [plan, differs])
    less = dict(list(start.items())[1:])
    assert not lanes.can_train_together(trainers, [LocalPlan(less, tuple(less))] * 2)


def test_a_layer_that_sees_some_tokens_only_is_named(adapted, table):
    stacked = {name: torch.stack([tensor] * 2) for name, tensor in started(table, 0).items()}
    with (
        pytest.raises(ModelError, match=r"q_proj is given 3 rows.*training.clients_at_once = 1"),
        adapted.in_lanes(stacked, 2),
    ):
        adapted.model(input_ids=torch.tensor([[5, 6]] * 3))
    adapted.model(input_ids=torch.tensor([[5, 6]] * 3))

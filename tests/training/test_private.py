"""DP-SGD on the tiny model, against one example after the other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import digest, initial_tensors
from fedsrd.data.prompt import Encoded
from fedsrd.errors import ModelError, PrivacyError
from fedsrd.privacy.accounting import Event, Spent
from fedsrd.privacy.stream import Stream, derived, public
from fedsrd.training import lanes
from fedsrd.training.batches import collate, response_loss
from fedsrd.training.models import AdaptedModel, lora_config, tensor_table
from fedsrd.training.options import BaseOptions, TrainingOptions
from fedsrd.training.private import Privacy, PrivateTrainer, _check, sampling_rate
from fedsrd.training.sft import LocalTrainer, pad_id

EXAMPLES = [Encoded([5, 6, 7, 8][: 1 + i % 4], [20 + i, 30 + i, 2][: 1 + i % 3]) for i in range(12)]
OPTIONS = TrainingOptions(steps=3, batch_size=2, accumulation=2, learning_rate=1e-2)


class Books:
    """Writes down what it is told."""

    def __init__(self, refuses=False):
        self.events: list[Event] = []
        self.fingerprints: list[str] = []
        self.refuses = refuses

    def charge(self, event, fingerprint):
        if self.refuses:
            raise PrivacyError("the budget is spent")
        self.events.append(event)
        self.fingerprints.append(fingerprint)
        return Spent(epsilon=1.0, delta=1e-5)


def privacy(noise=1.0, clip=0.5, secret=b"k" * 32, **more):
    return Privacy(noise, clip, secret, more.pop("account", None) or Books(), **more)


def load(tiny_model, dropout=0.0, **more):
    options = BaseOptions(dtype="float32", device="cpu", **more)
    return AdaptedModel.load(str(tiny_model), lora_config(4, 8, dropout, "all-linear"), options)


@pytest.fixture(scope="module")
def adapted(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def start(tiny_model):
    begun = initial_tensors(tensor_table(str(tiny_model), lora_config(4, 8, 0.0, "all-linear")), 1)
    # B = 0 would leave A without gradients.
    torch.manual_seed(0)
    return {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in begun.items()}


class Heard:
    """A gradient hook that keeps what it is given."""

    def __init__(self):
        self.steps = []

    def __call__(self, gradients):
        self.steps.append({name: gradient.clone() for name, gradient in gradients.items()})


def plain_step(adapted, trained, examples, clip, expected):
    """(1 / expected) sum_i g_i min(1, clip / ||g_i||) in float64, one example after the other; and the clipped sum."""
    named = adapted.parameters(trained)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in named.items()}
    for example in examples:
        loss = response_loss(adapted.model, collate([example], pad_id(adapted)), adapted.device)
        loss = loss / max(len(example.response), 1)
        found = torch.autograd.grad(loss, list(named.values()))
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in found))
        factor = min(1.0, clip / norm) if norm else 1.0
        for name, gradient in zip(named, found, strict=True):
            total[name] += factor * gradient.double()
    return {name: value / expected for name, value in total.items()}


@settings(max_examples=12)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=9),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    clip=st.floats(1e-3, 50.0),
    secret=st.binary(min_size=32, max_size=32),
    frozen=st.booleans(),
)
def test_a_step_is_the_clipped_sum_of_single_gradients_plus_the_very_noise(
    adapted, start, lengths, batch_size, accumulation, clip, secret, frozen
):
    examples = [Encoded([3 + i] * prompt, [10 + i] * response) for i, (prompt, response) in enumerate(lengths)]
    options = TrainingOptions(steps=1, batch_size=batch_size, accumulation=accumulation, learning_rate=1e-3)
    trained = tuple(name for name in start if not frozen or "lora_B" in name)
    rate = sampling_rate(options, len(examples))
    heard = {}
    for noise in (1e-6, 1.3):
        hook = Heard()
        trainer = PrivateTrainer(adapted, examples, options, "c", 0, privacy(noise, clip, secret))
        plan = LocalPlan(start, trained, gradient_hook=hook)
        trainer.train(plan, 1, lambda *_: None)
        where = derived(secret, "step", trainer._context(plan, 1), 0, digest({name: start[name] for name in trained}))
        taken = Stream(where, "sample").uniform(len(examples)) < rate
        adapted.set_tensors(start)
        chosen = [e for e, is_in in zip(examples, taken, strict=True) if is_in]
        expected = plain_step(adapted, trained, chosen, clip, rate * len(examples))
        heard[noise] = (hook.steps[0], expected)
    (quiet, wanted), (loud, under) = heard[1e-6], heard[1.3]
    assert list(quiet) == list(trained)
    scale = clip / (rate * len(examples))
    for name in trained:
        torch.testing.assert_close(quiet[name].double(), wanted[name], rtol=2e-3, atol=2e-4 * scale)
    # The noise of the loud one: its size, and its independence of the sum.
    drawn = torch.cat([(loud[name].double() - under[name]).flatten() for name in trained]) / (1.3 * scale)
    assert abs(float(drawn.mean())) < 6 / math.sqrt(len(drawn))
    assert abs(float(drawn.std()) - 1) < 6 / math.sqrt(2 * len(drawn))


def test_noise_is_as_large_as_clip_and_multiplier_say(adapted, start):
    # With a clip of next to nothing, what is left is noise: 2 x clip, over the 2 examples that a step has on average.
    options = TrainingOptions(steps=1, batch_size=2, learning_rate=1e-3)
    trainer = PrivateTrainer(adapted, EXAMPLES, options, "c", 0, privacy(2.0, 1e-12))
    hook = Heard()
    trainer.train(LocalPlan(start, tuple(start), gradient_hook=hook), 3, lambda *_: None)
    values = torch.cat([g.flatten() for g in hook.steps[0].values()]).double() / 1e-12
    assert abs(float(values.std()) - 1.0) < 0.05


def test_training_repeats_itself_and_any_other_query_has_other_noise(adapted, start):
    def run(round_number=1, secret=b"k" * 32, begun=start, examples=EXAMPLES, client="c", **plan):
        trainer = PrivateTrainer(adapted, examples, OPTIONS, client, 0, privacy(secret=secret))
        return digest(trainer.train(LocalPlan(begun, tuple(begun), **plan), round_number, lambda *_: None).tensors)

    once = run()
    torch.manual_seed(5)  # the global generator must not matter
    assert run() == once
    moved = {name: tensor + 1e-6 for name, tensor in start.items()}
    others = [run(2), run(secret=b"l" * 32), run(begun=moved), run(examples=EXAMPLES[:-1]), run(proximal=0.1)]
    assert len({once, *others}) == 6


def test_another_base_model_has_another_sample(tiny_model, adapted, start):
    other = load(tiny_model)
    next(p for name, p in other.model.named_parameters() if "q_proj.base_layer" in name).data.mul_(1.5)
    plan = LocalPlan(start, tuple(start))
    contexts = [
        PrivateTrainer(model, EXAMPLES, OPTIONS, "c", 0, privacy())._context(plan, 1) for model in (adapted, other)
    ]
    assert contexts[0] != contexts[1]


def test_a_round_is_charged_before_it_is_trained_and_not_at_all_where_it_is_refused(adapted, start):
    books = Books()
    trainer = PrivateTrainer(adapted, EXAMPLES, OPTIONS, "c", 0, privacy(account=books))
    found = trainer.train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    assert found.loss is None
    assert found.spent == Spent(epsilon=1.0, delta=1e-5)
    assert books.events == [Event(noise_multiplier=1.0, sampling_rate=4 / 12, steps=3)]
    trainer.train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    assert books.fingerprints[0] == books.fingerprints[1] != ""
    trainer.train(LocalPlan(start, tuple(start), gradient_hook=Heard()), 1, lambda *_: None)
    assert books.fingerprints[2] == ""
    steps = []
    refusing = PrivateTrainer(adapted, EXAMPLES, OPTIONS, "c", 0, privacy(account=Books(refuses=True)))
    with pytest.raises(PrivacyError, match="spent"):
        refusing.train(LocalPlan(start, tuple(start)), 1, lambda *said: steps.append(said))
    assert steps == []


def test_the_loss_is_told_where_the_site_allows_it(adapted, start):
    trainer = PrivateTrainer(adapted, EXAMPLES, OPTIONS, "c", 0, privacy(tell_loss=True))
    found = trainer.train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    assert found.loss is not None
    assert 0 < found.loss < 50


def test_steps_without_any_example_are_noise(adapted, start):
    many = EXAMPLES * 40
    options = TrainingOptions(steps=6, batch_size=1, learning_rate=1e-3)
    losses = []
    trainer = PrivateTrainer(adapted, many, options, "c", 0, privacy(secret=public(3)))
    hook = Heard()
    trainer.train(LocalPlan(start, tuple(start), gradient_hook=hook), 1, lambda _, loss: losses.append(loss))
    assert any(math.isnan(loss) for loss in losses)
    assert all(bool(g.isfinite().all()) for step in hook.steps for g in step.values())
    noises = [torch.cat([g.flatten() for g in step.values()]) for step in hook.steps]
    for a, b in itertools.pairwise(noises):
        assert not torch.equal(a, b)


def test_it_learns_where_noise_is_small(adapted, start):
    options = TrainingOptions(steps=30, batch_size=4, learning_rate=1e-2)
    losses = []
    trainer = PrivateTrainer(adapted, EXAMPLES, options, "c", 0, privacy(noise=1e-3, clip=10.0))
    trainer.train(LocalPlan(start, tuple(start)), 1, lambda _, loss: losses.append(loss))
    told = [loss for loss in losses if not math.isnan(loss)]
    assert sum(told[-5:]) < sum(told[:5])


def test_the_model_is_left_as_it_was(adapted, start):
    trainer = PrivateTrainer(adapted, EXAMPLES, OPTIONS, "c", 0, privacy())
    before = LocalTrainer(adapted, EXAMPLES, OPTIONS, "c", 0).train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    trainer.train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    after = LocalTrainer(adapted, EXAMPLES, OPTIONS, "c", 0).train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
    assert digest(before.tensors) == digest(after.tensors)
    assert not any(hasattr(p, "grad_sample") for p in adapted.model.parameters())
    assert not any(hasattr(module, "activations") for module in adapted.model.modules())


def test_dropout_works_and_comes_from_the_secret(tiny_model, start):
    model = load(tiny_model, dropout=0.3)

    def run(secret):
        trainer = PrivateTrainer(model, EXAMPLES, OPTIONS, "c", 0, privacy(secret=secret))
        return digest(trainer.train(LocalPlan(start, tuple(start)), 1, lambda *_: None).tensors)

    assert run(b"k" * 32) == run(b"k" * 32) != run(b"m" * 32)


def test_a_gradient_that_is_not_finite_counts_as_zero(adapted, start):
    broken = {name: tensor.clone() for name, tensor in start.items()}
    hook = Heard()
    trainer = PrivateTrainer(
        adapted, EXAMPLES, TrainingOptions(steps=1, batch_size=12, learning_rate=1e-3), "c", 0, privacy()
    )
    with adapted.model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: output * 1e38 * 1e38):
        trainer.train(LocalPlan(broken, tuple(broken), gradient_hook=hook), 1, lambda *_: None)
    assert all(bool(g.isfinite().all()) for g in hook.steps[0].values())


def test_what_has_no_gradients_by_example_is_refused(adapted, tiny_model):
    with pytest.raises(PrivacyError, match="packing = true"):
        PrivateTrainer(adapted, EXAMPLES, OPTIONS.model_copy(update={"packing": True}), "c", 0, privacy())
    checkpointing = load(tiny_model, gradient_checkpointing=True)
    with pytest.raises(PrivacyError, match="gradient_checkpointing"):
        PrivateTrainer(checkpointing, EXAMPLES, OPTIONS, "c", 0, privacy())
    mixture = torch.nn.Parameter(torch.zeros(2))
    mixture.grad_sample = torch.zeros(5, 2)
    with pytest.raises(ModelError, match="layer experts"):
        _check({"experts": mixture}, 3)


def test_clients_at_once_train_one_after_the_other(adapted, start):
    trainers = [PrivateTrainer(adapted, EXAMPLES, OPTIONS, name, 0, privacy()) for name in "ab"]
    plans = [LocalPlan(start, tuple(start))] * 2
    assert not lanes.can_train_together(trainers, plans)


def test_a_base_in_four_bits_works(tiny_model, start):
    pytest.importorskip("bitsandbytes")
    try:
        model = load(tiny_model, quantization="nf4")
    except ModelError as error:
        pytest.skip(str(error))
    hook = Heard()
    options = TrainingOptions(steps=1, batch_size=3, accumulation=4, learning_rate=1e-3)
    trainer = PrivateTrainer(model, EXAMPLES, options, "c", 0, privacy(noise=1e-6, clip=0.5))
    trainer.train(LocalPlan(start, tuple(start), gradient_hook=hook), 1, lambda *_: None)
    model.set_tensors(start)
    wanted = plain_step(model, tuple(start), EXAMPLES, 0.5, 12)
    for name, found in hook.steps[0].items():
        torch.testing.assert_close(found.double(), wanted[name], rtol=5e-2, atol=2e-4)

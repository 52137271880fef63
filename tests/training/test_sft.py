"""Local training on the tiny model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedsrd.core import lora as lora_view
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import digest, initial_tensors
from fedsrd.data.prompt import Encoded
from fedsrd.errors import ModelError
from fedsrd.evaluation import nll
from fedsrd.training.batches import IGNORED, collate, draw, response_loss
from fedsrd.training.models import (
    AdaptedModel,
    adapter_config,
    adapter_tensors,
    lora_config,
    merged_tensors,
    tensor_table,
    tensors_of_adapter,
)
from fedsrd.training.options import BaseOptions, TrainingOptions
from fedsrd.training.sft import LocalTrainer, PooledTrainer

EXAMPLES = [Encoded([5, 6, 7, 8][: 1 + i % 4], [20 + i, 30 + i, 2][: 1 + i % 3]) for i in range(12)]
OPTIONS = TrainingOptions(steps=3, batch_size=2, accumulation=2, learning_rate=1e-2)


def everything(start, **more):
    return LocalPlan(start, tuple(start), **more)


@pytest.fixture(scope="module")
def lora():
    return lora_config(4, 8, 0.1, "all-linear")


@pytest.fixture(scope="module")
def adapted(tiny_model, lora):
    return AdaptedModel.load(str(tiny_model), lora, BaseOptions(dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def table(tiny_model, lora):
    return tensor_table(str(tiny_model), lora)


def test_the_tensor_table_of_the_config_is_that_of_the_loaded_model(adapted, table):
    modules = lora_view.modules_of(table)
    assert len(modules) == 14
    assert modules[0] == ("model.layers.0.self_attn.q_proj", 32, 32, 4)
    pairs = lora_view.pairs_of(adapted.tensors())
    assert [module.name for module in modules] == list(pairs)
    assert list(table.shapes) == list(adapted.tensors()) == adapted.names
    for module in modules:
        pair = pairs[module.name]
        assert pair.B.shape == (module.out_features, 4)
        assert pair.A.shape == (4, module.in_features)


def test_tensors_go_in_and_come_out_with_the_same_bits(adapted, table):
    start = initial_tensors(table, 1)
    adapted.set_tensors(start)
    assert digest(adapted.tensors()) == digest(start)
    assert digest(tensors_of_adapter(adapter_tensors(start))) == digest(start)


def test_training_lowers_the_loss_and_repeats_itself(adapted, table):
    trainer = LocalTrainer(adapted, EXAMPLES, TrainingOptions(steps=20, learning_rate=1e-2), "c", seed=0)
    start = initial_tensors(table, 0)
    losses: list[float] = []
    once = trainer.train(everything(start), 1, lambda step, loss: losses.append(loss))
    torch.manual_seed(123)  # the global generator must not matter
    twice = trainer.train(everything(start), 1, lambda step, loss: None)
    assert digest(once.tensors) == digest(twice.tensors)
    assert losses[-1] < losses[0]
    assert digest(trainer.train(everything(start), 2, lambda *_: None).tensors) != digest(once.tensors)


def test_gradient_checkpointing_and_a_bfloat16_base_train_float32_adapters(tiny_model, table):
    start = initial_tensors(table, 0)
    plain, saving, half = (
        AdaptedModel.load(
            str(tiny_model),
            lora_config(4, 8, 0.0, "all-linear"),
            BaseOptions(dtype=dtype, device="cpu", gradient_checkpointing=saves),
        )
        for dtype, saves in (("float32", False), ("float32", True), ("bfloat16", False))
    )
    found = [
        LocalTrainer(model, EXAMPLES, OPTIONS, "c", 0).train(everything(start), 1, lambda *_: None)
        for model in (plain, saving, half)
    ]
    for name in start:
        torch.testing.assert_close(found[1].tensors[name], found[0].tensors[name])
        assert found[2].tensors[name].dtype == torch.float32
    assert found[2].loss == pytest.approx(found[0].loss, rel=0.05)


def test_a_frozen_factor_stays(adapted, table):
    trainer = LocalTrainer(adapted, EXAMPLES, OPTIONS, "c", seed=0)
    start = initial_tensors(table, 0)
    of = {factor: [name for name in start if lora_view.split(name)[1] == factor] for factor in ("B", "A")}
    assert len(of["B"]) == len(of["A"]) == 14
    after = trainer.train(LocalPlan(start, tuple(of["B"])), 1, lambda *_: None).tensors
    assert all(torch.equal(after[name], start[name]) for name in of["A"])
    assert all(not torch.equal(after[name], start[name]) for name in of["B"])


def test_training_leaves_the_global_generator_alone(adapted, table):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    LocalTrainer(adapted, EXAMPLES, OPTIONS, "c", 0).train(everything(initial_tensors(table, 0)), 1, lambda *_: None)
    assert torch.equal(torch.rand(3), expected)


def test_the_loss_is_that_of_the_plain_reading(adapted, table):
    """Padding, positions and the cut of the logits change nothing: one example at a time, all logits, float64 sums."""
    adapted.set_tensors(initial_tensors(table, 0))
    adapted.model.eval()
    with torch.inference_mode():
        batched = response_loss(adapted.model, collate(EXAMPLES, pad_id=2), adapted.device).item()
        plain = 0.0
        for example in EXAMPLES:
            ids = torch.tensor([example.prompt + example.response])
            logp = adapted.model(input_ids=ids).logits[0].double().log_softmax(-1)
            at = len(example.prompt) - 1
            plain -= sum(logp[at + i, token].item() for i, token in enumerate(example.response))
    assert batched == pytest.approx(plain, rel=1e-5)
    tokens = sum(len(e.response) for e in EXAMPLES)
    found = nll.likelihood(nll.by_example(adapted, EXAMPLES, batch_size=5))
    assert found.mean == pytest.approx(plain / tokens, rel=1e-5)


def test_the_end_of_the_response_is_learnt_though_padding_has_its_id():
    batch = collate([Encoded([5], [9, 2]), Encoded([5, 6, 7], [8, 8, 8, 2])], pad_id=2)
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 9, 2], [8, 8, 8, 2]]
    assert batch.response_tokens == 6
    assert batch.mask.sum(1).tolist() == [3, 7]
    assert batch.positions[0].tolist() == [0, 0, 0, 0, 0, 1, 2]


@given(st.integers(1, 17), st.integers(0, 60), st.integers(1, 40))
def test_drawing_is_seamless_and_visits_every_example_once_an_epoch(count, start, wanted):
    whole = draw(count, start + wanted, 0, 9, "c")
    assert draw(count, wanted, start, 9, "c") == whole[start:]
    for epoch in range((start + wanted) // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_loss_that_explodes_comes_back_to_be_refused(adapted, table):
    absurd = OPTIONS.model_copy(update={"steps": 4, "learning_rate": 1e30, "max_grad_norm": 1e30})
    trainer = LocalTrainer(adapted, EXAMPLES, absurd, "c", 0)
    after = trainer.train(everything(initial_tensors(table, 0)), 1, lambda *_: None)
    assert not all(bool(torch.isfinite(tensor).all()) for tensor in after.tensors.values())


def test_a_rank_larger_than_a_layer_names_the_layer(tiny_model):
    with pytest.raises(ModelError, match=r"lora.rank = 17: larger than layer .*k_proj \(16 x 32\); choose at most 16"):
        tensor_table(str(tiny_model), lora_config(17, 8, 0.0, "all-linear"))


def test_unknown_targets_and_models_are_explained(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="no layer to adapt"):
        tensor_table(str(tiny_model), lora_config(4, 8, 0.0, ["query_key_value"]))
    with pytest.raises(ModelError, match="there is no such folder"):
        tensor_table(str(tmp_path / "missing"), lora_config(4, 8, 0.0, "all-linear"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        tensor_table(str(tmp_path), lora_config(4, 8, 0.0, "all-linear"))
    with pytest.raises(ModelError, match="the embedded model is embedded:smollm2-135m"):
        tensor_table("embedded:llama", lora_config(4, 8, 0.0, "all-linear"))


def test_a_device_that_is_not_there(tiny_model, lora):
    with pytest.raises(ModelError, match=r"model\.device = 'tpu9'"):
        AdaptedModel.load(str(tiny_model), lora, BaseOptions(device="tpu9"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="torch finds no GPU"):
            AdaptedModel.load(str(tiny_model), lora, BaseOptions(device="cuda"))


def test_the_proximal_term_holds_training_near_its_start(adapted, table):
    """Where it is all that counts, training stays at the start; where it counts little, it goes less far."""
    start = initial_tensors(table, 0)
    trainer = LocalTrainer(adapted, EXAMPLES, TrainingOptions(steps=8, learning_rate=1e-2), "c", 0)
    free, held, tight = (
        trainer.train(everything(start, proximal=mu), 1, lambda *_: None).tensors for mu in (0.0, 1.0, 1e4)
    )
    far = [sum(float((found[name] - start[name]).square().sum()) for name in start) for found in (free, held, tight)]
    assert far[0] > far[1] > far[2] > 0


def test_pooled_training_sees_what_the_clients_see_in_turn(adapted):
    halves = [EXAMPLES[:6], EXAMPLES[6:]]
    trainers = [LocalTrainer(adapted, half, OPTIONS, name, 3) for name, half in zip("ab", halves, strict=True)]
    pooled = PooledTrainer(trainers, "all")
    assert pooled.count == 12
    assert pooled.options.steps == 6
    each = pooled.options.batch_size * pooled.options.accumulation * pooled.options.steps
    for number in (1, 2):
        seen = pooled.examples_of(number, each)
        assert len(seen) == 24
        assert seen[0::2] == trainers[0].examples_of(number, 12)
        assert seen[1::2] == trainers[1].examples_of(number, 12)


def test_a_changed_base_computes_what_its_merged_adapter_says_and_goes_back(tiny_model, table, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = lora_config(4, 8, 0.0, "all-linear")
    adapted = AdaptedModel.load(str(tiny_model), lora, BaseOptions(dtype="float32", device="cpu"))
    tensors = {
        name: tensor + 0.01 if lora_view.split(name)[1] == "B" else tensor
        for name, tensor in initial_tensors(table, 0).items()
    }
    torch.manual_seed(0)
    base = {m.name: 0.05 * torch.randn(m.out_features, m.in_features) for m in lora_view.modules_of(table)[:9]}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    adapted.model.eval()

    def logits(model):
        with torch.inference_mode():
            return model(input_ids=ids).logits

    adapted.set_tensors(tensors)
    plain = logits(adapted.model)
    adapted.set_tensors(tensors, base)
    changed = logits(adapted.model)
    assert (changed - plain).abs().max() > 1e-3
    merged, ranks = merged_tensors(tensors, base)
    save_file(merged, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(adapter_config(lora, str(tiny_model), None, ranks))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), changed, rtol=1e-4, atol=1e-5)
    adapted.set_tensors(tensors)
    assert torch.equal(logits(adapted.model), plain)


def test_a_step_goes_by_the_schedules_rate(adapted, table):
    start = initial_tensors(table, 0)
    options = OPTIONS.model_copy(update={"steps": 1, "schedule": "linear"})
    half = OPTIONS.model_copy(update={"steps": 1, "learning_rate": OPTIONS.learning_rate / 2})

    def moved(trainer, number):
        found = trainer.train(everything(start), number, lambda *_: None).tensors
        return {name: found[name] for name in start}

    scheduled = moved(LocalTrainer(adapted, EXAMPLES, options, "c", 0, rounds=2), 2)
    plain = moved(LocalTrainer(adapted, EXAMPLES, half, "c", 0, rounds=2), 2)
    assert all(torch.equal(scheduled[name], plain[name]) for name in start)

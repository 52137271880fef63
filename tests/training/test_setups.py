"""Set-ups of real models, at tiny sizes: their architectures, 4-bit bases, packing, tokenizers that lack something."""

import json
import math

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.core import lora as lora_view
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import initial_tensors
from fedsrd.data.prompt import Encoded
from fedsrd.errors import DataError, ModelError, RecipeError
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder
from fedsrd.training import loading
from fedsrd.training.batches import collate, pack, packed_loss, response_loss
from fedsrd.training.models import AdaptedModel, lora_config, tensor_table
from fedsrd.training.options import BaseOptions, TrainingOptions
from fedsrd.training.sft import LocalTrainer


def run(tree, folder):
    told = Watch()
    prepared = setup.prepare(recipes.parse(tree), RunFolder(folder), resume=False, observer=told)
    return local.run(prepared, told), prepared, told


# The architectures of the models in recipes/models: 7 adapted linear layers in each of 2 decoder layers.
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "smollm3": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", [False, True])
def test_a_round_on_every_architecture(kind, packing, tiny_recipe, tmp_path):
    tiny.make(tmp_path / "model", kind, **KINDS[kind])
    tree = {**tiny_recipe, "rounds": 1, "model": {**tiny_recipe["model"], "id": str(tmp_path / "model")}}
    tree["training"] = {**tree["training"], "packing": packing, "learning_rate": 1e-3}
    summary, prepared, _ = run(tree, tmp_path / "run")
    assert len(lora_view.modules_of(prepared.table)) == 14
    assert math.isfinite(summary.final.in_domain)
    assert summary.final.in_domain != summary.base.in_domain


@pytest.fixture(scope="module")
def adapted(tiny_model):
    return AdaptedModel.load(
        str(tiny_model), lora_config(4, 8, 0.0, "all-linear"), BaseOptions(dtype="float32", device="cpu")
    )


TOKENS = st.lists(st.integers(5, 290), min_size=1, max_size=12)
SEQUENCES = st.lists(st.builds(Encoded, TOKENS, TOKENS), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SEQUENCES)
def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one(adapted, examples):
    """The attention of a packed sequence must not see its neighbours."""
    parameters = list(adapted.parameters(adapted.names).values())
    found = []
    for loss in (
        lambda: response_loss(adapted.model, collate(examples, 0), adapted.device),
        lambda: packed_loss(adapted.model, pack(examples), adapted.device),
    ):
        value = loss()
        found.append((value.item(), torch.autograd.grad(value, parameters)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for padded, packed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_gradients_on_every_architecture(kind, tmp_path):
    """Longer together than a sliding window, so that a neighbour would be seen if it could be."""
    tiny.make(tmp_path, kind, **KINDS[kind])
    lora = lora_config(4, 8, 0.0, "all-linear")
    adapted = AdaptedModel.load(str(tmp_path), lora, BaseOptions(dtype="float32", device="cpu"))
    moved = {"B": 0.02, "A": 0.0}
    adapted.set_tensors({name: t + moved[lora_view.split(name)[1]] for name, t in adapted.tensors().items()})
    adapted.model.eval()
    parameters = list(adapted.parameters(adapted.names).values())
    sizes = ((3, 9), (14, 6), (1, 1), (7, 12))
    examples = [Encoded(list(range(5, 5 + p)), list(range(40, 40 + r))) for p, r in sizes]
    padded = response_loss(adapted.model, collate(examples, 0), adapted.device)
    packed = packed_loss(adapted.model, pack(examples), adapted.device)
    assert packed.item() == pytest.approx(padded.item(), rel=1e-4)
    gradients = (torch.autograd.grad(loss, parameters) for loss in (padded, packed))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_packing_trains_to_the_same_tensors(adapted, tiny_model):
    table = tensor_table(str(tiny_model), lora_config(4, 8, 0.0, "all-linear"))
    start = initial_tensors(table, 0)
    examples = [Encoded(list(range(5, 5 + n)), list(range(20, 23 + n))) for n in range(1, 9)]
    options = TrainingOptions(steps=3, batch_size=2, accumulation=2, learning_rate=1e-2)
    found = [
        LocalTrainer(adapted, examples, options.model_copy(update={"packing": packing}), "c", 0)
        .train(LocalPlan(start, tuple(start)), 1, lambda *_: None)
        .tensors
        for packing in (False, True)
    ]
    for name in start:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-2, atol=1e-4)


def test_a_run_on_a_four_bit_base(tiny_recipe, tmp_path):
    tiny.make(tmp_path / "model", hidden_size=64, intermediate_size=128)
    tree = {**tiny_recipe, "rounds": 2}
    tree["model"] = {**tiny_recipe["model"], "id": str(tmp_path / "model"), "quantization": "nf4"}
    summary, _, _ = run(tree, tmp_path / "run")
    assert summary.final.in_domain < summary.base.in_domain
    model, _ = loading.load_base(
        str(tmp_path / "model"), BaseOptions(dtype="float32", device="cpu", quantization="nf4")
    )
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8

    from fedsrd.evaluation.model_loader import ModelLoader
    from fedsrd.evaluation.subjects import resolve

    (subject,) = resolve([str(tmp_path / "run")])
    assert subject.quantization == "nf4"
    loaded = ModelLoader("cpu").load(subject)
    assert math.isfinite(loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().item())


def test_a_method_that_changes_the_base_refuses_a_quantised_one(tiny_recipe, tmp_path):
    tree = {**tiny_recipe, "method": {"name": "flora"}, "model": {**tiny_recipe["model"], "quantization": "nf4"}}
    with pytest.raises(RecipeError, match="flora changes the base model.*a quantised base.*Methods that fit:.*fedsrd"):
        setup.prepare(recipes.parse(tree), RunFolder(tmp_path / "run"), resume=False, observer=Watch())


def test_without_bitsandbytes_the_message_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"pip install 'fedsrd\[qlora\]'"):
        loading.load_base(str(tiny_model), BaseOptions(quantization="nf4", device="cpu"))


def test_an_attention_that_is_not_there(tiny_model):
    with pytest.raises(ModelError, match="flash_attn|FlashAttention|Flash Attention"):
        loading.load_base(str(tiny_model), BaseOptions(attention="flash_attention_2", device="cpu"))


def test_what_the_tokenizer_lacks_is_said(tiny_recipe, tmp_path):
    model = tmp_path / "model"
    tiny.make(model)
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("pad_token")
    file.write_text(json.dumps(config))
    tree = {**tiny_recipe, "rounds": 1, "model": {**tiny_recipe["model"], "id": str(model)}}
    _, _, told = run(tree, tmp_path / "run")
    assert any("no padding token" in line for line in told.said)

    config.pop("eos_token")
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no end-of-text token"):
        run(tree, tmp_path / "other")

    file.write_text(json.dumps({**config, "eos_token": "<|im_end|>"}))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(DataError, match='no chat template; use "alpaca" or "plain"'):
        run(tree, tmp_path / "third")


def test_out_of_memory_ends_in_advice(monkeypatch, capsys):
    from fedsrd import cli

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert "training.batch_size=1" in said
    assert "Traceback" not in said


def test_a_gated_model_says_where_to_accept_its_terms(monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at ...")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=r"gated; accept the terms at https://huggingface.co/meta-llama/X.*hf auth"):
        loading.load_base("meta-llama/X", BaseOptions(device="cpu"))

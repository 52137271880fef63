"""The embedded default, on the real model and data: one short round of four clients, and an adapter that generates."""

import pytest
import torch
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.core import lora
from fedsrd.data.prompt import format_prompt
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder

SHORT = [
    "rounds=1",
    "training.steps=1",
    "training.batch_size=2",
    "training.max_length=64",
    "evaluation.examples=2",
    "evaluation.benchmark_examples=2",
    'evaluation.benchmarks=["humaneval-nll", "math-exact", "medmcqa", "logiqa", "tort-law"]',
]


@pytest.mark.embedded
def test_four_specialists_train_one_real_model(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fedsrd.training.loading import source_of

    out = RunFolder(tmp_path / "run")
    recipe = recipes.load(None, SHORT)
    prepared = setup.prepare(recipe, out, resume=False, observer=Watch())
    assert prepared.table.elements == 4_884_480
    assert len(lora.modules_of(prepared.table)) == 210
    summary = local.run(prepared, Watch())
    assert summary.base.in_domain > 1
    assert set(summary.final.by_set) == {"code", "medical", "finance", "math", "general", "law"}
    assert set(summary.benchmarks["final"]) == {"humaneval-nll", "math-exact", "medmcqa", "logiqa", "tort-law"}
    assert summary.benchmarks["final"]["medmcqa"]["sample_len"] == 2
    record = out.records()[1]
    dense = 4 * prepared.table.elements
    assert all(size < 0.04 * dense for size in record.bytes_up.values())
    assert all(size < 0.02 * dense for size in record.bytes_down.values())

    base = source_of(recipe.model.id)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out.adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    # The folder is made to be given away.
    assert model.peft_config["default"].base_model_name_or_path == recipe.model.id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer(format_prompt("Say hello.", "chat", tokenizer), return_tensors="pt", add_special_tokens=False)
    merged = model.merge_and_unload()
    written = merged.generate(**ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0, ids["input_ids"].shape[1] :]).strip()


@pytest.mark.embedded
def test_the_demo_ends_with_what_it_shows(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fedsrd import shipped
    from fedsrd.cli import app

    text = shipped.text("demo")
    for long, short in (
        ("rounds = 8", "rounds = 1"),
        ("steps = 4", "steps = 1"),
        ("\nexamples = 24", "\nexamples = 2"),
        ("benchmark_examples = 24", "benchmark_examples = 2"),
    ):
        assert long in text
        text = text.replace(long, short)
    (tmp_path / "demo.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["demo", "--out", str(out)], catch_exceptions=False, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = done.output.rstrip().splitlines()
    assert lines[-1] == f"Report: {out}/report.html"
    assert (out / "report.html").is_file()
    for shown in ("round 1/1", "FedAvg", "FedSRD", "alone", "times as much", "cardiovascular"):
        assert shown in done.output
    assert max(map(len, lines[:-1])) <= 80
    again = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert "continue it with --resume" in str(again.exception)
    assert CliRunner().invoke(app, ["demo", "--resume", "--out", str(out), "--quiet"]).exit_code == 0

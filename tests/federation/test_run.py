"""Whole runs on the tiny model: what is in the folder, and that a killed run continues with the same bytes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

from fedsrd import recipe as recipes
from fedsrd.core.lora import tensor_name
from fedsrd.core.tensors import digest
from fedsrd.errors import DataError, FederationError, FedSRDError, ModelError, RunFolderError
from fedsrd.federation import local, session, setup
from fedsrd.federation.resume import restore
from fedsrd.files import write_atomically
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import read_rounds, read_summary


class Quiet:
    """An observer that remembers."""

    def __init__(self):
        self.said, self.warned, self.records = [], [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def activity(self, *args):
        pass

    def round_done(self, record):
        self.records.append(record)


def run(tree, path, *, resume=False, **options):
    observer = Quiet()
    prepared = setup.prepare(recipes.parse(tree), RunFolder(path), resume=resume, observer=observer)
    return local.run(prepared, observer, **options), observer


def adapter_bytes(path: Path) -> bytes:
    return (path / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["fedsrd", "fedsrd-e", "fedavg"])
def test_a_run_leaves_everything_in_its_folder(tiny_recipe, tmp_path, method):
    tiny_recipe["method"] = {"name": method}
    out = tmp_path / "run"
    summary, _ = run(tiny_recipe, out, keep_payloads=True)
    records = read_rounds(out / "rounds.jsonl")
    assert [record.round for record in records] == [0, 1, 2, 3]
    assert records[0].bytes_down == {"left": 64, "right": 64}
    for record in records[1:]:
        folder = out / "payloads" / f"round-{record.round:04d}"
        for client in ("left", "right"):
            assert record.bytes_up[client] == (folder / f"{client}.up").stat().st_size
            assert record.bytes_down[client] == (folder / "server.down").stat().st_size
        expected = "BA" if method == "fedavg" else ("B" if record.round % 2 else "A")
        assert record.factor_down == expected
    assert summary == read_summary(out / "summary.json")
    total = sum(sum(r.bytes_up.values()) + sum(r.bytes_down.values()) for r in records)
    assert summary.bytes_up + summary.bytes_down == total
    assert summary.ratio_to_dense_float32 == pytest.approx(total / (4 * 2 * summary.parameters * 2 * 3))
    assert summary.final.by_set["left"] != summary.base.by_set["left"]
    assert not list(out.rglob("*.tmp"))
    stored = tomllib.loads((out / "recipe.toml").read_text())
    assert stored["environment"]["torch"]
    assert recipes.parse(stored).resolved() == recipes.parse(tiny_recipe).resolved()


def test_the_adapter_is_the_last_state_and_peft_loads_merges_and_generates(tiny_recipe, tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    summary, _ = run(tiny_recipe, out)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, out / "adapter")
    model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    checkpoint, _ = restore(RunFolder(out))
    tensors = checkpoint.state.tensors
    assert (checkpoint.state.version, digest(tensors)) == (3, summary.digest)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.lora_B["default"].weight, tensors[tensor_name("model.layers.0.self_attn.q_proj", "B")])
    assert layer.scaling["default"] == 2.0
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
        assert merged.generate(input_ids=ids, max_new_tokens=4, do_sample=False).shape[1] > 4


def test_same_recipe_and_seed_same_bytes(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "one")
    run(tiny_recipe, tmp_path / "two")
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")
    run({**tiny_recipe, "seed": 1}, tmp_path / "three")
    assert adapter_bytes(tmp_path / "one") != adapter_bytes(tmp_path / "three")


@pytest.mark.parametrize("moments", [(0.3,), (0.0, 0.55), (0.8, 0.1, 0.45)])
def test_a_killed_run_continues_to_the_same_adapter(tiny_recipe, tmp_path, moments):
    """SIGKILL at a share of the run's own length, again and again; then --resume to the end. Rounding is at random."""
    tiny_recipe["rounds"] = 4
    tiny_recipe["wire"] = {"uplink": {"values": "int4"}, "downlink": {"values": "int8"}}
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe))
    calm, out = tmp_path / "calm", tmp_path / "killed"
    command = [sys.executable, "-m", "fedsrd.cli", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(file), "--out", str(calm)], check=True, env=environment, capture_output=True)
    lines = (calm / "rounds.jsonl").read_text().splitlines()
    for share in moments:
        arguments = (
            ["--out", str(out), "--resume"] if (out / "recipe.toml").exists() else [str(file), "--out", str(out)]
        )
        process = subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.DEVNULL)
        _wait_for_rounds(process, out, wanted=1 + int(share * len(lines)))
        time.sleep(0.02 + share / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
    arguments = ["--out", str(out), "--resume"] if (out / "recipe.toml").exists() else [str(file), "--out", str(out)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert adapter_bytes(out) == adapter_bytes(calm)
    found = read_rounds(out / "rounds.jsonl")
    assert [record.digest for record in found] == [json.loads(line)["digest"] for line in lines]


def _wait_for_rounds(process, out, wanted):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        file = out / "rounds.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= wanted:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("stop_after", ["rounds.jsonl", "global.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("which", [1, 3])
def test_a_crash_between_any_two_files_loses_nothing(tiny_recipe, tmp_path, monkeypatch, stop_after, which):
    from fedsrd.runs import folder as runfolder

    run(tiny_recipe, tmp_path / "calm")
    seen = 0

    def crash(path, content):
        nonlocal seen
        write_atomically(path, content)
        seen += path.name == stop_after
        if seen == which:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_recipe, tmp_path / "crashed")
    run(tiny_recipe, tmp_path / "crashed", resume=True)
    assert adapter_bytes(tmp_path / "crashed") == adapter_bytes(tmp_path / "calm")


def test_resuming_a_finished_run_changes_nothing(tiny_recipe, tmp_path):
    first, _ = run(tiny_recipe, tmp_path / "run")
    kept = adapter_bytes(tmp_path / "run")
    second, _ = run(tiny_recipe, tmp_path / "run", resume=True)
    assert second == first
    assert adapter_bytes(tmp_path / "run") == kept


def test_other_versions_are_warned_of(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run")
    file = tmp_path / "run" / "recipe.toml"
    text = file.read_text()
    file.write_text(text.replace(f'torch = "{torch.__version__}"', 'torch = "1.0"'))
    assert file.read_text() != text
    _, observer = run(tiny_recipe, tmp_path / "run", resume=True)
    assert f"torch 1.0 -> {torch.__version__}" in observer.warned[0]


def test_folders_of_other_runs_are_left_alone(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run")
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="holds a run already; continue it with --resume"):
        run(tiny_recipe, tmp_path / "run")
    with pytest.raises(RunFolderError, match="another recipe .it differs in lora, seed"):
        run({**tiny_recipe, "seed": 5, "lora": {"rank": 2}}, tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        run(tiny_recipe, tmp_path / "nothing", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match="not an empty folder"):
        run(tiny_recipe, tmp_path / "mine")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
    assert not (tmp_path / "nothing").exists()


def test_a_damaged_state_is_refused_not_guessed(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "run")
    state = tmp_path / "run" / "state" / "global.safetensors"
    whole = bytearray(state.read_bytes())
    whole[-1] ^= 1
    state.write_bytes(bytes(whole))
    with pytest.raises(RunFolderError, match="is damaged"):
        run(tiny_recipe, tmp_path / "run", resume=True)
    state.write_bytes(b"short")
    with pytest.raises(RunFolderError, match="is damaged"):
        run(tiny_recipe, tmp_path / "run", resume=True)


def test_a_full_disk_keeps_the_last_complete_round(tiny_recipe, tmp_path, monkeypatch):
    from fedsrd.runs import folder as runfolder

    writes = 0

    def full(path, content):
        nonlocal writes
        writes += 1
        if writes > 7:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "write_atomically", full)
        with pytest.raises(FederationError, match="no space left on the disk.*--resume --out"):
            run(tiny_recipe, tmp_path / "run")
    checkpoint, _ = restore(RunFolder(tmp_path / "run"))
    assert checkpoint.state.version == 1
    run(tiny_recipe, tmp_path / "run", resume=True)
    run(tiny_recipe, tmp_path / "calm")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")


@pytest.mark.parametrize("name", ["fedsa-lora", "flora", "fedex-lora", "flasc", "centralised"])
def test_whatever_a_method_ends_in_peft_loads_and_it_scores_what_the_run_says(name, tiny_recipe, tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedsrd.training.batches import collate, response_loss

    tiny_recipe["method"] = {"name": name}
    summary, _ = run(tiny_recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    found = []
    for adapter in folder.adapters():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
        recipe = folder.stored_recipe()
        prepared = session.Session(recipe, setup.check(recipe, Quiet(), session.Assets())[1], Quiet(), session.Assets())
        total, tokens = 0.0, 0
        with torch.inference_mode():
            for example in prepared._tests["left"]:
                batch = collate([example], 0)
                total += response_loss(model, batch, torch.device("cpu")).item()
                tokens += batch.response_tokens
        found.append(total / tokens)
    names = [path.name for path in folder.adapters()]
    assert names == (["left", "right"] if name == "fedsa-lora" else ["all"] if name == "centralised" else ["adapter"])
    assert sum(found) / len(found) == pytest.approx(summary.final.by_set["left"], rel=1e-4)
    assert summary.final.by_set["left"] < summary.base.by_set["left"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    """For real: the process may not write more than 64 KiB to a file."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(target, b"new" * (1 << 16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_when_every_client_diverges_the_run_ends_with_the_state_kept(tiny_recipe, tmp_path, monkeypatch):
    from fedsrd.training import sft

    train = sft.LocalTrainer.train

    def diverge(self, plan, round_number, on_step):
        result = train(self, plan, round_number, on_step)
        if round_number == 2 or (round_number == 1 and self.client == "left"):
            next(iter(result.tensors.values())).fill_(float("nan"))
        return result

    monkeypatch.setattr(sft.LocalTrainer, "train", diverge)
    observer = Quiet()
    prepared = setup.prepare(recipes.parse(tiny_recipe), RunFolder(tmp_path / "run"), resume=False, observer=observer)
    with pytest.raises(FederationError, match="round 2: no client sent a usable update"):
        local.run(prepared, observer)
    assert "left is left out" in observer.warned[0]
    assert list(observer.records[1].rejected) == ["left"]
    assert list(observer.records[1].bytes_up) == ["right"]
    checkpoint, _ = restore(RunFolder(tmp_path / "run"))
    assert checkpoint.state.version == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lora": {"rank": 99}}, ModelError, "lora.rank = 99: larger than layer"),
        ({"model": {"id": "/nowhere/model"}}, ModelError, "no such folder"),
        ({"model": {"id": "embedded:gpt"}}, ModelError, "embedded:smollm2-135m"),
        ({"lora": {"rank": 2, "targets": ["wrong"]}}, ModelError, "no layer to adapt"),
        ({"clients": [{"name": "a", "data": {"source": "/nowhere/x.jsonl"}}]}, DataError, "a: .*no such file"),
        ({"clients": [{"name": "a", "data": {"source": "embedded:cod"}}]}, DataError, "Did you mean embedded:code"),
        ({"clients": [{"name": "a", "data": {"source": "embedded:logiqa"}}]}, FedSRDError, "for evaluation only"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tiny_recipe, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        run({**tiny_recipe, **change}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def crowd(tiny_recipe):
    """Six clients of whom two are asked in a round."""
    first = tiny_recipe["clients"]
    tiny_recipe["clients"] = [{**first[place % 2], "name": f"c{place}"} for place in range(6)]
    tiny_recipe |= {"rounds": 5, "participation": {"fraction": 0.34, "minimum": 2}}
    # A fifth of a tiny B is nearly singular.
    tiny_recipe["method"] = {"name": "fedsrd", "damping": 0.1}
    tiny_recipe["training"] |= {"steps": 1, "learning_rate": 1e-3}
    return tiny_recipe


def test_a_run_with_a_few_clients_a_round_ends_with_everybody_equal(crowd, tmp_path):
    summary, _ = run(crowd, tmp_path / "run")
    rounds = RunFolder(tmp_path / "run").records()[1:]
    assert all(len(record.bytes_up) == 2 for record in rounds)
    assert all(len(record.bytes_down) == 2 for record in rounds[:-1])
    assert len({frozenset(record.bytes_up) for record in rounds}) > 1
    # The last round's bytes hold what those get who sat it out.
    assert set(rounds[-1].bytes_down) == {f"c{place}" for place in range(6)}
    assert summary.clients == 6
    again, _ = run(crowd, tmp_path / "again")
    assert again.digest == summary.digest


@pytest.mark.parametrize(("name", "stop"), [("fedsrd", 2), ("fedsa-lora", 3), ("flora", 5)])
def test_it_continues_with_the_same_bytes_and_byte_counts(name, stop, crowd, tmp_path):
    crowd["method"] = {"name": name} if name != "fedsrd" else crowd["method"]
    whole, _ = run(crowd, tmp_path / "whole")

    class Stops(Quiet):
        def round_done(self, record):
            super().round_done(record)
            if record.round == stop:
                raise KeyboardInterrupt

    prepared = setup.prepare(recipes.parse(crowd), RunFolder(tmp_path / "run"), resume=False, observer=Stops())
    with pytest.raises(KeyboardInterrupt):
        local.run(prepared, Stops())
    resumed, _ = run(crowd, tmp_path / "run", resume=True)
    for key in ("digest", "bytes_up", "bytes_down", "final"):
        assert getattr(resumed, key) == getattr(whole, key)


def test_a_minimum_above_the_number_of_clients_is_refused(crowd):
    crowd["participation"]["minimum"] = 7
    with pytest.raises(FedSRDError, match="participation.minimum = 7: there are 6 clients"):
        recipes.parse(crowd)


def test_a_damaged_state_shows_before_weights_are_read(tiny_recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(tiny_recipe, out)
    content = bytearray((out / "state" / "global.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (out / "state" / "global.safetensors").write_bytes(content)
    monkeypatch.setattr(session.Session, "__init__", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(RunFolderError, match="is damaged, the run cannot be resumed"):
        run(tiny_recipe, out, resume=True)

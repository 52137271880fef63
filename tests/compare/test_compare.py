"""Whole comparisons on the tiny model: tables, resuming, failures, two processes."""

import copy
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from fedsrd.compare import plan
from fedsrd.compare import run as comparing
from fedsrd.errors import RecipeError, RunFolderError
from fedsrd.report import outcome
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import rounds_text
from fedsrd.runs.results import read_results


class Quiet:
    def __init__(self):
        self.done, self.failed, self.said = [], [], []

    def say(self, text):
        self.said.append(text)

    warn = say

    def activity(self, *_):
        pass

    def round_done(self, record):
        pass

    def run_started(self, run, place, count):
        pass

    def run_done(self, run, folder, seconds):
        self.done.append((run.label, run.point, run.seed))

    def run_failed(self, run, reason):
        self.failed.append((run.label, reason))


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    def recipe(**compare):
        tree = copy.deepcopy(tiny_recipe)
        tree["rounds"] = 2
        tree["evaluation"]["every"] = 1
        tree["evaluation"]["sets"].append({**tree["evaluation"]["sets"][0], "name": "far", "in_domain": False})
        tree["compare"] = compare
        file = tmp_path / "recipe.toml"
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        return file

    return recipe


def make(comparison, out, resume=False):
    watcher = Quiet()
    comparing.run(comparison, out, watcher, resume=resume)
    return watcher, outcome.write(comparison, out)


def test_a_comparison_ends_with_tables_figures_and_one_answer(recipe, tmp_path):
    file = recipe(
        methods=["fedavg", "fedsrd", "fedsa-lora", "flora", "local"],
        seeds=[0, 1],
        grid={"training.learning_rate": [1e-3, 2e-2]},
    )
    comparison, out = plan.load(file), tmp_path / "out"
    watcher, results = make(comparison, out)
    assert not watcher.failed
    assert len(watcher.done) == comparison.count() == 5 * 3
    rows = {row.label: row for row in results.rows}
    for row in rows.values():
        best = min(row.search, key=row.search.get)
        assert best == plan.slug(tuple(row.point.items()))
        assert row.runs == 2
        assert row.in_domain.n == 2
        for curve in row.curves:
            assert curve.rounds == [0, 1, 2]
    # Byte counts are those of the run folders; same seed, same data and start for every method.
    summary = RunFolder(out / "runs/fedavg" / plan.slug(tuple(rows["fedavg"].point.items())) / "seed-0").summary()
    assert rows["fedavg"].curves[0].bytes_up[-1] == summary.bytes_up
    assert rows["fedsrd"].bytes_up.mean < 0.3 * rows["fedavg"].bytes_up.mean
    assert rows["local"].reference
    assert rows["fedsa-lora"].own != rows["fedsa-lora"].in_domain
    assert len({json.dumps(row.curves[0].base) for row in rows.values()}) == 1
    table = (out / "table.md").read_text()
    for label in rows:
        assert f"| {label} |" in table
    lines = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    assert {line["method"] for line in lines} == set(rows)
    assert float(lines[0]["in_domain_mean"]) == pytest.approx(rows[lines[0]["method"]].in_domain.mean)
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert drawn == {
        f"{name}.{kind}" for name in ("pareto", "rounds", "bytes", "seconds", "sparsity") for kind in ("png", "svg")
    }
    json.loads((out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read_results(out / "results.json") == results
    # Nothing is left to do, and doing nothing changes nothing.
    before = (out / "results.json").read_bytes()
    again, _ = make(plan.load(out / "comparison.toml"), out, resume=True)
    assert not again.done
    assert (out / "results.json").read_bytes() == before


def test_a_failed_run_is_told_and_does_not_stop_the_others(recipe, tmp_path, monkeypatch):
    from fedsrd.methods import fedprox

    def broken(self, state, context):
        raise ZeroDivisionError("a bug in a method")

    monkeypatch.setattr(fedprox.FedProx, "local_plan", broken)
    comparison, out = plan.load(recipe(methods=["fedprox", "fedavg"], seeds=[0])), tmp_path / "out"
    watcher, results = make(comparison, out)
    assert [label for label, _ in watcher.failed] == ["fedprox"]
    assert [label for label, _, _ in watcher.done] == ["fedavg"]
    row = results.rows[0]
    assert (row.runs, row.failed[0].seed) == (0, 0)
    assert "a bug in a method" in (out / "table.md").read_text()
    monkeypatch.undo()
    watcher, results = make(comparison, out, resume=True)
    assert [label for label, _, _ in watcher.done] == ["fedprox"]
    assert not results.rows[0].failed


def test_a_model_that_diverged_is_a_failure_and_no_figure(recipe, tmp_path):
    comparison, out = plan.load(recipe(methods=["fedavg", "local"], seeds=[0])), tmp_path / "out"
    make(comparison, out)
    folder = RunFolder(out / "runs/fedavg/seed-0")
    *others, last = folder.records()
    gone = last.model_copy(update={"eval": dict.fromkeys(last.eval, float("nan"))})
    folder.rounds.write_text(rounds_text([*others, gone]))
    results = outcome.write(comparison, out)
    assert [row.runs for row in results.rows] == [0, 1]
    assert "diverged" in results.rows[0].failed[0].reason
    assert read_results(out / "results.json") == results


def test_a_method_that_cannot_run_the_recipe_stops_before_the_first_run(recipe, tmp_path):
    comparison = plan.load(
        recipe(
            variants=[{"method": {"name": name}, "set": {"clients.0.rank": 2}} for name in ("flora", "fedavg")],
            seeds=[0],
        )
    )
    refused = (
        "client left: rank = 2, of lora.rank = 4: fedavg needs every client at the adapter's rank.*flexlora, flora"
    )
    with pytest.raises(RecipeError, match=refused):
        comparing.run(comparison, tmp_path / "out", Quiet(), resume=False)
    assert not (tmp_path / "out").exists()
    able = plan.load(tmp_path / "recipe.toml", chosen=["flora"])
    watcher, _ = make(able, tmp_path / "out")
    assert not watcher.failed


def test_a_folder_with_something_else_in_it_is_refused(recipe, tmp_path):
    comparison = plan.load(recipe(methods=["fedavg"], seeds=[0]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="not an empty folder"):
        comparing.check_folder(comparison, other, resume=True)
    out = tmp_path / "out"
    make(comparison, out)
    with pytest.raises(RunFolderError, match="holds a comparison already.*--resume"):
        comparing.check_folder(comparison, out, resume=False)
    with pytest.raises(RunFolderError, match="another comparison"):
        comparing.check_folder(plan.load(recipe(methods=["fedavg"], seeds=[1])), out, resume=True)


def start(out, file, *more):
    command = [sys.executable, "-m", "fedsrd.cli", "compare", str(file), "--out", str(out), *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def states(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("adapter_model.safetensors")}


def test_of_two_comparisons_that_start_in_one_empty_folder_the_second_is_refused(recipe, tmp_path):
    out = tmp_path / "out"
    one = plan.load(recipe(methods=["fedavg"], seeds=[0]))
    other = plan.load(recipe(methods=["fedavg"], seeds=[1])).to_toml()

    class Overtaken(Quiet):
        def say(self, text):
            # Between the first look at the folder and the start.
            out.mkdir(exist_ok=True)
            (out / "comparison.toml").write_text(other, encoding="utf-8")

    with pytest.raises(RunFolderError, match="holds a comparison already"):
        comparing.run(one, out, Overtaken(), resume=False)
    assert (out / "comparison.toml").read_text(encoding="utf-8") == other
    (out / "comparison.toml").unlink()
    (out / ".fedsrd-0123.tmp").write_text("half")
    comparing.check_folder(one, out, resume=False)
    (out / ".lock").unlink()
    (out / ".lock").symlink_to(tmp_path / "recipe.toml")
    with pytest.raises(RunFolderError, match="lock is a symbolic link"):
        comparing.run(one, out, Quiet(), resume=False)


def test_killed_and_resumed_by_two_processes_it_gives_the_same_bytes(recipe, tmp_path):
    file = recipe(methods=["fedavg", "fedsrd", "flasc"], seeds=[0, 1])
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    make(plan.load(file), calm)
    process = start(torn, file)
    waited = time.monotonic() + 120
    while not list(torn.rglob("global.safetensors")) and time.monotonic() < waited:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert RunFolder(torn / "runs/fedavg/seed-0").recipe_file.is_file()
    both = [start(torn, file, "--resume") for _ in range(2)]
    texts = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert states(torn) == states(calm)
    for text in texts:
        assert "Held-out response NLL" in text
        assert "fedsrd" in text
    started = sum(text.count("seed 0\n") + text.count("seed 1\n") for text in texts)
    assert started == 6

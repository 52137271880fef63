"""The report as a file: whole, escaped, asking nobody for anything; and what it is refused for."""

import dataclasses
import json
import math
import re

import pytest
from typer.testing import CliRunner
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.errors import RunFolderError
from fedsrd.federation import local, setup
from fedsrd.federation.client import Client
from fedsrd.report.page.write import report
from fedsrd.runs.folder import RunFolder


def run(tree, folder):
    prepared = setup.prepare(recipes.parse(tree), RunFolder(folder), resume=False, observer=Watch())
    local.run(prepared, Watch())
    return folder


@pytest.fixture
def finished(tiny_recipe, tmp_path):
    tree = {**tiny_recipe, "evaluation": {**tiny_recipe["evaluation"], "samples": 2, "every": 1}}
    rows = [{"instruction": "say </script><b>hi</b> & so", "response": "<i>no</i>"}] * 4
    file = tmp_path / "held-out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree["evaluation"]["sets"] = [{"name": "held", "data": {"source": str(file)}}]
    return run(tree, tmp_path / "run")


def test_a_run_writes_samples_and_a_page_that_holds_all_of_it(finished):
    first, *_, last = RunFolder(finished).records()
    assert len(first.samples["held"]) == 2
    assert first.samples["held"][0].prompt == last.samples["held"][0].prompt
    page = report([finished], finished / "report.html").read_text()
    for part in ("Quality", "Bytes", "Time", "Sparsity of the uplink", "Rounds", "Answers before and after", "Adapter"):
        assert f"<h3>{part}" in page
    assert last.digest[:12] in page
    assert f"fedsrd run {finished.name}/recipe.toml" in page


def test_nothing_of_anybodys_becomes_markup(finished):
    page = report([finished], finished / "report.html").read_text()
    ours = page[: page.index("<footer>")]
    assert "<b>hi</b>" not in ours
    assert "&lt;/script&gt;&lt;b&gt;hi&lt;/b&gt; &amp; so" in ours
    # Every script that holds a figure is JSON, and ends where it should.
    figures = re.findall(r'<script type="application/json">(.*?)</script>', ours, re.DOTALL)
    assert len(figures) >= 5
    assert all(json.loads(figure)["data"] for figure in figures)


def test_it_opens_whatever_clients_say_about_themselves(tiny_recipe, tmp_path, monkeypatch):
    train = Client.train

    def boast(self, *args):
        update = train(self, *args)
        return dataclasses.replace(update, loss=math.nan, seconds={"train": 1.7e308, "sparsify": -1.0, "sleep": 5.0})

    monkeypatch.setattr(Client, "train", boast)
    folder = run(tiny_recipe, tmp_path / "boasting")
    text = (folder / "rounds.jsonl").read_text() + (folder / "summary.json").read_text()
    assert not re.search("NaN|Infinity", text)
    last = RunFolder(folder).records()[-1]
    assert not last.rejected
    assert math.isnan(last.train_loss)
    assert last.seconds["train"] == 0
    page = report([folder], folder / "report.html").read_text()
    assert last.digest[:12] in page


def test_it_asks_nobody_for_anything(finished):
    page = report([finished], finished / "report.html").read_text()
    assert "default-src 'none'" in page
    ours = page[: page.index("<footer>")]
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|#)\w+:""", ours)


def test_several_runs_become_one_page(finished, tiny_recipe, tmp_path):
    other = run({**tiny_recipe, "method": {"name": "fedavg"}}, tmp_path / "other")
    done = CliRunner().invoke(app, ["report", str(finished), str(other), "--out", str(tmp_path / "both.html")])
    assert done.exit_code == 0
    page = (tmp_path / "both.html").read_text()
    assert page.count("<section id=") == 2
    assert "All runs" in page
    ids = re.findall(r'class="plot" id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_cannot_be_reported(tiny_recipe, tmp_path):
    with pytest.raises(RunFolderError, match="neither a run .* nor a comparison"):
        report([tmp_path], tmp_path / "x.html")
    unfinished = RunFolder(tmp_path / "unfinished")
    unfinished.create(recipes.parse(tiny_recipe), {})
    with pytest.raises(RunFolderError, match="not complete; finish it first: fedsrd run --resume"):
        report([unfinished.path], tmp_path / "x.html")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "results.json").write_text("{}")
    with pytest.raises(RunFolderError, match="results.json: name: missing; .* not as fedsrd wrote it"):
        report([broken], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()

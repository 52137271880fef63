"""What may be given away says nothing of anybody's disk: the adapter, its card, the report, the summary."""

import json
from pathlib import Path

import pytest
from hub import cached
from peft import PeftModel
from test_page import run
from transformers import AutoModelForCausalLM

from fedsrd import recipe as recipes
from fedsrd.errors import EvaluationError
from fedsrd.evaluation import subjects
from fedsrd.report.page.write import report
from fedsrd.runs.folder import RunFolder
from fedsrd.training.models import adapter_config, lora_config

LOCAL = ("recipe.toml", "rounds.jsonl", "state")
"""What docs/report.md says must stay: `--resume` needs the recipe with its places."""


def give_away(folder):
    """Every file of a run's folder that is not marked local."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if file.relative_to(folder).parts[0] not in LOCAL]


@pytest.fixture(params=["fedsrd", "fedsa-lora", "fedex-lora"])
def finished(request, tiny_recipe, tmp_path, monkeypatch):
    """A run of a local model, with data that is named in every way."""
    monkeypatch.setenv("HOME", str(tmp_path / "home of ann"))
    cached(monkeypatch, tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    left, right = (Path(client["data"]["source"]) for client in tiny_recipe["clients"])
    for file, place in ((left, "home of ann/ward 3/a.jsonl"), (right, "secret-ward/data/b.jsonl")):
        (tmp_path / place).parent.mkdir(parents=True)
        file.rename(tmp_path / place)
    clients = [
        {"name": "left", "data": {"source": "~/ward 3/a.jsonl"}, "also": [{"source": "secret-ward/data/b.jsonl"}]},
        {"name": "right", "data": {"source": "secret-ward/data"}},
    ]
    sets = [{"name": "held", "data": {"source": str(tmp_path / "secret-ward" / "data" / "b.jsonl")}}]
    tree = {**tiny_recipe, "rounds": 1, "method": {"name": request.param}, "clients": clients}
    tree["evaluation"] = {**tiny_recipe["evaluation"], "sets": sets}
    (tmp_path / "out of ann").mkdir()
    folder = run(tree, tmp_path / "out of ann" / "tiny-run")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    lines[1]["rejected"] = {"third": f"third: {tmp_path}/secret-ward/c.jsonl is empty", "left": "~/ward 3/a.jsonl: bad"}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_may_be_given_away_names_no_place(finished, tiny_model):
    report([finished], finished / "report.html")
    report([finished, finished], finished / "both.html")
    files = give_away(finished)
    assert {"adapter_config.json", "README.md", "report.html", "summary.json"} <= {file.name for file in files}
    private = [str(Path.home()), "of ann", "secret-ward", "ward 3", str(tiny_model), str(tiny_model.parent), "/tmp/"]
    for file in files:
        content = file.read_bytes()
        assert [text for text in private if text.encode() in content] == [], file
    page = (finished / "report.html").read_text()
    assert 'source = "private data (a local file)"' in page.replace("&#34;", '"')
    assert "on a local model, 2 clients" in page
    assert "third: third: c.jsonl is empty; left: a.jsonl: bad" in page
    assert "fedsrd run tiny-run/recipe.toml" in page


def test_an_adapter_of_a_local_model_is_still_loaded_and_evaluated(finished, tiny_model, tmp_path):
    for adapter in RunFolder(finished).adapters():
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] is None
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
        assert model.active_adapter == "default"
        (subject,) = subjects.resolve([str(adapter)])
        assert (subject.model, subject.adapter) == (str(tiny_model), adapter.resolve())
        assert subject.name == ("tiny-run" if adapter.name == "adapter" else adapter.name)
        copy = tmp_path / "copy"
        adapter.rename(copy)
        with pytest.raises(EvaluationError, match="names no base_model_name_or_path.* name the run's folder"):
            subjects.resolve([str(copy)])
        copy.rename(adapter)


def test_an_adapter_names_its_base_model_where_that_is_public(tmp_path, monkeypatch):
    cached(monkeypatch, tmp_path, "models--org--base")
    lora = lora_config(4, 8, 0.0, "all-linear")

    def base(name, revision=None):
        config = json.loads(adapter_config(lora, name, revision))
        return config["base_model_name_or_path"], config["revision"]

    assert base("org/base", "v1") == ("org/base", "v1")
    assert base("embedded:smollm2-135m") == ("embedded:smollm2-135m", None)
    assert base("models/ours") == base("/srv/models/ours", "v1") == (None, None)


def test_a_comparisons_page_names_no_place(tmp_path, monkeypatch):
    cached(monkeypatch, tmp_path / "hub", "models--org--base")
    stored = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-main.json"
    results = json.loads(stored.read_text())
    reason = "Traceback\nFileNotFoundError: [Errno 2] No such file or directory: '/home/ann/secret/x.jsonl'"
    results["rows"][0]["failed"] = [{"seed": 0, "reason": reason}]
    results["rows"][0]["point"] = {"model.id": "/home/ann/secret/model"}
    folder = tmp_path / "secret" / "compared"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "comparison.toml").write_text(
        'name = "x"\n[model]\nid = "secret/base"\n[[clients]]\nname = "a"\ndata = {source = "data/secret"}\n'
        '[[compare.variants]]\nset = {"model.id" = "/secret", "clients.0.data.source" = "~/secret"}\n'
        '[compare.grid]\n"model.id" = ["org/base", "/srv/secret"]\n'
    )
    page = report([folder], tmp_path / "page.html").read_text()
    assert "secret" not in page
    assert "/home/" not in page[: page.index("<footer>")]
    assert "org/base" in page
    assert "directory: &#39;x.jsonl&#39;" in page


def test_a_public_recipe_keeps_its_names_on_another_machine(finished, tmp_path, monkeypatch):
    """Whoever ran it could look whether a name is the hub's, and has said so in the card."""
    cached(monkeypatch, tmp_path / "elsewhere")
    tree = recipes.load(finished / "recipe.toml").resolved()
    tree["model"]["id"], tree["clients"][1]["data"]["source"] = "org/base", "openai/gsm8k:main"
    (finished / "recipe.toml").write_text(recipes.parse(tree).to_toml({}))
    for adapter in RunFolder(finished).adapters():
        (adapter / "README.md").write_text("---\nbase_model: org/base\ndatasets: [openai/gsm8k]\n---\n")
    page = report([finished], tmp_path / "page.html").read_text()
    assert "on org/base, " in page
    assert "openai/gsm8k:main" in page
    assert "ward 3" not in page

"""The adapter's card: what a hub reads of it, what people read, and what must not stand in it."""

import pytest
from hub import cached
from huggingface_hub import ModelCard
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.federation import local, setup
from fedsrd.runs.card import card, public_names
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import Quality, Summary

SUMMARY = Summary(
    name="tiny",
    method="fedsrd",
    seed=0,
    rounds=3,
    clients=2,
    parameters=1234,
    bytes_up=1 << 20,
    bytes_down=1 << 21,
    ratio_to_dense_float32=0.09,
    ratio_to_dense_bfloat16=0.18,
    seconds={},
    metric="response NLL, nats a token",
    base=Quality(by_set={"code": 2.5}, in_domain=2.5, out_of_domain=None),
    final=Quality(by_set={"code": 2.25}, in_domain=2.25, out_of_domain=None),
    digest="",
)


def test_a_run_leaves_a_card_that_the_hubs_library_reads(tiny_recipe, tmp_path):
    folder = RunFolder(tmp_path / "run")
    prepared = setup.prepare(recipes.parse({**tiny_recipe, "rounds": 1}), folder, resume=False, observer=Watch())
    local.run(prepared, Watch())
    found = ModelCard.load(folder.adapter / "README.md")
    assert found.data.library_name == "peft"
    assert "federated-learning" in found.data.tags
    assert found.data.base_model is None
    for private in (str(tmp_path), tiny_recipe["model"]["id"], "left.jsonl"):
        assert private not in found.content
    assert "- left: private data (a local file)" in found.text
    assert "fedsrd" in found.text
    # PEFT still takes the folder.
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(folder.adapter).r == 4


def test_personal_adapters_have_one_each(tiny_recipe, tmp_path):
    folder = RunFolder(tmp_path / "run")
    tree = {**tiny_recipe, "rounds": 1, "method": {"name": "fedsa-lora"}}
    local.run(setup.prepare(recipes.parse(tree), folder, resume=False, observer=Watch()), Watch())
    assert [(adapter / "README.md").is_file() for adapter in folder.adapters()] == [True, True]


def test_public_names_are_named(tiny_recipe, tmp_path, monkeypatch):
    cached(monkeypatch, tmp_path / "hub", "models--meta-llama--Llama-3.2-3B", "datasets--openai--gsm8k")
    tree = {**tiny_recipe, "model": {"id": "meta-llama/Llama-3.2-3B", "license": "llama3.2"}}
    tree["clients"] = [
        {"name": "math", "data": {"source": "openai/gsm8k:main"}},
        {"name": "code", "data": {"source": "embedded:code"}},
        {"name": "ward"},
        {"name": "clinic", "data": {"source": "data/ward"}},
    ]
    found = ModelCard(card(recipes.parse(tree), SUMMARY))
    assert found.data.base_model == "meta-llama/Llama-3.2-3B"
    assert found.data.license == "llama3.2"
    assert found.data.datasets == ["openai/gsm8k"]
    assert "- ward: private data that only its site knows" in found.text
    # It may be a folder's name as well as an id.
    assert "- clinic: private data (a local file)" in found.text
    assert "data/ward" not in found.content
    assert "| code | 2.500 | 2.250 |" in found.text
    assert "1.00 MiB up and 2.00 MiB down" in found.text
    assert "9.0% of sending every parameter" in found.text
    assert 'from_pretrained("meta-llama/Llama-3.2-3B")' in found.text


@pytest.mark.parametrize(
    ("model", "base", "license"),
    [("embedded:smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"), ("/secret/model", None, None)],
)
def test_licences(tiny_recipe, model, base, license):
    found = ModelCard(
        card(recipes.parse({**tiny_recipe, "model": {"id": model}}), SUMMARY.model_copy(update={"final": None}))
    )
    assert (found.data.base_model, found.data.license) == (base, license)
    assert ("Not stated" in found.text) == (license is None)
    assert "secret" not in found.content
    assert "Not measured." in found.text


def test_a_card_says_which_names_were_the_hubs(tiny_recipe, tmp_path, monkeypatch):
    cached(monkeypatch, tmp_path / "hub", "models--org--base", "datasets--openai--gsm8k")
    tree = {**tiny_recipe, "model": {"id": "org/base"}}
    tree["clients"] = [{"name": "math", "data": {"source": "openai/gsm8k:main"}}, tiny_recipe["clients"][0]]
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "README.md").write_text(card(recipes.parse(tree), SUMMARY))
    assert public_names([tmp_path / "good"]) == {"org/base", "openai/gsm8k"}
    for front in ("", "base_model: [1, {a: b}]\ndatasets: 5", "[", "- a", "a: !!python/object/apply:os.getcwd []"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "README.md").write_text(f"---\n{front}\n---\n")
        assert public_names([tmp_path / "bad", tmp_path / "none"]) == set()

"""Every recipe of recipes/ is a valid comparison, and the paper's experiments are all there, twice."""

from pathlib import Path

import pytest

from fedsrd import methods
from fedsrd import recipe as recipes
from fedsrd.compare import plan
from fedsrd.errors import RecipeError

HERE = Path(__file__).parents[2] / "recipes"
EXPERIMENTS = {"server-lr", "ablation", "uplink-alpha", "download-sparsity", "fedavg-sparsifiers", "time"}


def comparisons(folder):
    return {path.stem for path in (HERE / folder).glob("*.toml")}


def test_the_papers_experiments_exist_for_the_paper_and_for_two_cores():
    assert comparisons("embedded") == EXPERIMENTS | {"main"}
    assert comparisons("paper") == EXPERIMENTS | {"main-llama", "main-qwen", "base-llama", "base-qwen"}


@pytest.mark.parametrize("file", sorted(HERE.rglob("*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_is_valid_and_names_what_it_runs(file):
    if file.stem.startswith("base-"):
        assert recipes.load(file).name == f"paper-{file.stem.removeprefix('base-')}"
        return
    if file.parent.name == "models":
        found = recipes.load(file)
        assert found.name == ("models" if file.stem == "base" else file.stem)
        assert found.model.license or file.stem == "base"
        assert (found.model.quantization == "nf4") == ("qlora" in file.stem)
        assert all(data.source.count("/") == 1 for client in found.clients for data in client.sections)
        return
    if file.parent.name == "flower":
        assert recipes.load(file).name == f"embedded-{file.stem}"
        return
    comparison = plan.load(file)
    assert comparison.name == f"{file.parent.name}-{file.stem}"
    assert comparison.count() >= 3
    first = comparison.run(comparison.variants[0], comparison.points(comparison.variants[0])[0], 0).recipe
    assert first.model.id.startswith("embedded:") == (file.parent.name == "embedded")


@pytest.mark.parametrize("file", ["embedded/main", "paper/main-llama", "paper/main-qwen"])
def test_the_main_tables_have_every_method(file):
    comparison = plan.load(HERE / f"{file}.toml")
    assert {variant.label for variant in comparison.variants} == set(methods.names())
    assert comparison.seeds == (0, 1, 2)
    assert len(comparison.points(comparison.variants[0])) >= 3
    # FedAvg, what all others are held against, is searched as widely as FedSRD.
    points = {variant.label: len(comparison.points(variant)) for variant in comparison.variants}
    assert points["fedavg"] == points["fedsrd"] == points["fedsrd-e"]


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "low.toml").write_text(
        'rounds = 3\nclients = [{name = "a", data = {source = "a.jsonl"}}]\n[model]\nid = "m"\nrevision = "r"\n'
        '[method]\nname = "fedsrd"\nalpha = 0.5\n'
    )
    (tmp_path / "high.toml").write_text(
        'extends = "low.toml"\nseed = 7\n[model]\nid = "n"\n[method]\nname = "fedavg"\n'
    )
    found = recipes.load(tmp_path / "high.toml", ["rounds=4"])
    assert (found.rounds, found.seed, found.model.id, found.model.revision) == (4, 7, "n", "r")
    assert found.method["name"] == "fedavg"
    (tmp_path / "loop.toml").write_text('extends = "loop.toml"\n')
    with pytest.raises(RecipeError, match="no recipe that extends itself"):
        recipes.load(tmp_path / "loop.toml")
    (tmp_path / "lost.toml").write_text('extends = "nowhere.toml"\n')
    with pytest.raises(RecipeError, match=r"nowhere.toml: no such file"):
        recipes.load(tmp_path / "lost.toml")

"""Every recipe of recipes/ is a valid comparison, and the paper's experiments are all there, twice."""

from pathlib import Path

import pytest

from fedsrd import methods
from fedsrd import recipe as recipes
from fedsrd.compare import plan
from fedsrd.errors import RecipeError
from fedsrd.methods import ServerOptimizerOptions as Optimizer

HERE = Path(__file__).parents[2] / "src" / "fedsrd" / "recipes"
EXPERIMENTS = {"server-lr", "ablation", "uplink-alpha", "download-sparsity", "fedavg-sparsifiers", "time"}


def comparisons(folder):
    return {path.stem for path in (HERE / folder).glob("*.toml")}


def test_the_papers_experiments_exist_for_the_paper_and_for_two_cores():
    assert comparisons("embedded") == EXPERIMENTS | {"budgets", "main", "participation", "secure", "server-optimizers"}
    assert comparisons("paper") == EXPERIMENTS | {"main-llama", "main-qwen", "base-llama", "base-qwen"}


@pytest.mark.parametrize("file", sorted(HERE.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
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


def test_the_server_optimizers_are_those_of_their_papers():
    comparison = plan.load(HERE / "embedded" / "server-optimizers.toml")
    found = {}
    for variant in comparison.variants:
        recipes_of = [comparison.run(variant, point, 0).recipe for point in comparison.points(variant)]
        assert {recipe.method["name"] for recipe in recipes_of} == {"fedavg"}
        assert {recipe.training.learning_rate for recipe in recipes_of} == {1e-3, 2e-3}
        found[variant.label] = [recipe.server_optimizer for recipe in recipes_of]
    assert set(found) == {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "diloco"}
    assert set(found.pop("fedavg")) == {None}
    # DiLoCo's outer optimizer (arXiv 2311.08105).
    (diloco,) = set(found.pop("diloco"))
    assert diloco == Optimizer(name="sgd", learning_rate=0.7, momentum=0.9, nesterov=True)
    expected = {
        "fedavgm": {"name": "sgd", "momentum": 0.9},
        "fedadam": {"name": "adam", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3},
        "fedyogi": {"name": "yogi", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3},
        "fedadagrad": {"name": "adagrad", "beta1": 0.0, "epsilon": 1e-3},
    }
    for label, options in expected.items():
        rates = {one.learning_rate for one in found[label]}
        assert len(rates) == 2
        assert set(found[label]) == {Optimizer(learning_rate=rate, **options) for rate in rates}


def test_fedavg_with_a_longer_step_has_the_rates_of_its_labels():
    for folder in ("embedded", "paper"):
        comparison = plan.load(HERE / folder / "server-lr.toml")
        for variant in comparison.variants:
            _, server, _, client = variant.label.split("-", 3)
            recipe = comparison.run(variant, (), 0).recipe
            assert recipe.server_optimizer == Optimizer(name="sgd", learning_rate=float(server))
            assert recipe.training.learning_rate == float(client)
        comparison = plan.load(HERE / folder / "fedavg-sparsifiers.toml")
        (longer,) = (variant for variant in comparison.variants if variant.label == "fedavg-server-lr")
        found = [comparison.run(longer, point, 0).recipe.server_optimizer for point in comparison.points(longer)]
        assert set(found) == {Optimizer(name="sgd", learning_rate=rate) for rate in (1.5, 2.0)}


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "low.toml").write_text(
        'rounds = 3\nclients = [{name = "a", data = {source = "a.jsonl"}}]\n[model]\nid = "m"\nrevision = "r"\n'
        '[method]\nname = "fedsrd"\nalpha = 0.5\n'
        '[server_optimizer]\nname = "sgd"\nlearning_rate = 0.5\nmomentum = 0.9\n'
    )
    (tmp_path / "high.toml").write_text(
        'extends = "low.toml"\nseed = 7\n[model]\nid = "n"\n[method]\nname = "fedavg"\n'
        '[server_optimizer]\nname = "adam"\nlearning_rate = 0.01\n'
    )
    found = recipes.load(tmp_path / "high.toml", ["rounds=4"])
    assert (found.rounds, found.seed, found.model.id, found.model.revision) == (4, 7, "n", "r")
    # One method's options mean nothing to another, one optimizer's neither.
    assert found.method["name"] == "fedavg"
    assert found.server_optimizer == Optimizer(name="adam", learning_rate=0.01)
    (tmp_path / "loop.toml").write_text('extends = "loop.toml"\n')
    with pytest.raises(RecipeError, match="no recipe that extends itself"):
        recipes.load(tmp_path / "loop.toml")
    (tmp_path / "lost.toml").write_text('extends = "nowhere.toml"\n')
    with pytest.raises(RecipeError, match=r"nowhere.toml: no such file"):
        recipes.load(tmp_path / "lost.toml")

"""What is compared is settled, and every mistake told, before anything runs."""

import copy
import tomllib

import pytest
import tomli_w

from fedsrd.compare import plan
from fedsrd.compare.plan import slug
from fedsrd.errors import RecipeError


@pytest.fixture
def write(tiny_recipe, tmp_path):
    def write(**compare):
        tree = copy.deepcopy(tiny_recipe)
        if compare:
            tree["compare"] = compare
        file = tmp_path / "recipe.toml"
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        return file

    return write


def test_methods_of_the_command_line_take_the_recipes_own_options(write):
    file = write()
    tree = tomllib.loads(file.read_text())
    tree["method"] = {"name": "fedsrd", "alpha": 0.7}
    file.write_text(tomli_w.dumps(tree))
    comparison = plan.load(file, chosen=["fedsrd", "fedavg"], seeds=[3, 4])
    first, second = comparison.variants
    assert comparison.run(first, (), 3).recipe.method["alpha"] == 0.7
    assert comparison.run(second, (), 4).recipe.method["alpha"] == 0.85
    assert comparison.run(second, (), 4).recipe.seed == 4
    assert comparison.count() == 4


def test_a_grid_is_searched_with_its_seeds_and_the_rest_follows(write, tmp_path):
    file = write(
        methods=["fedavg"],
        seeds=[0, 1, 2],
        grid={"training.learning_rate": [1e-3, 1e-2]},
        variants=[
            {"label": "faster", "method": {"name": "fedavg"}, "grid": {"method.server_lr": [1.0, 2.0]}},
            {"method": {"name": "fedprox"}, "set": {"wire.uplink.values": "int8"}, "grid": {}},
        ],
    )
    comparison = plan.load(file)
    plain, faster, prox = comparison.variants
    assert prox.label == "fedprox"
    assert [len(comparison.points(variant)) for variant in comparison.variants] == [2, 4, 2]
    assert [run.seed for run in comparison.searches(plain)] == [0, 0]
    point = comparison.points(faster)[3]
    assert slug(point) == "training.learning_rate=0.01,method.server_lr=2.0"
    run = comparison.finals(faster, point)[1]
    assert (run.recipe.training.learning_rate, run.recipe.method["server_lr"], run.seed) == (0.01, 2.0, 1)
    assert run.folder(tmp_path).relative_to(tmp_path).parts == ("runs", "faster", slug(point), "seed-1")
    assert comparison.run(prox, comparison.points(prox)[0], 0).recipe.wire.uplink.values == "int8"
    # 2 + 4 + 2 points with one seed, and two more seeds of each variant at its best point.
    assert comparison.count() == 8 + 3 * 2
    again = tmp_path / "again.toml"
    again.write_text(comparison.to_toml())
    assert plan.load(again).to_toml() == comparison.to_toml()


def test_all_is_every_method(write):
    from fedsrd import methods

    assert [variant.label for variant in plan.load(write(), chosen=["all"]).variants] == methods.names()


def test_rates_of_the_command_line_replace_the_grid(write):
    comparison = plan.load(write(methods=["fedavg"], grid={"lora.rank": [2, 4]}), rates=[1e-3, 2e-3])
    assert comparison.points(comparison.variants[0]) == [
        (("training.learning_rate", 1e-3),),
        (("training.learning_rate", 2e-3),),
    ]


@pytest.mark.parametrize(
    ("compare", "given", "message"),
    [
        ({}, {}, "nothing to compare.*Known: centralised, fed-dare"),
        ({}, {"chosen": ["fedavg", "fedagv"]}, "no such method. Did you mean 'fedavg'.*Known"),
        ({}, {"chosen": ["fedavg", "fedavg"]}, "fedavg given twice"),
        ({}, {"chosen": ["fedavg"], "seeds": [1, 2, 1]}, "1 given twice"),
        ({}, {"chosen": ["fedavg"], "seeds": []}, "compare.seeds.*at least 1"),
        ({}, {"chosen": ["fedavg"], "seeds": [-1]}, "compare.seeds.0 = -1"),
        ({"seed": [0]}, {"chosen": ["fedavg"]}, "unknown key 'compare.seed': did you mean 'seeds'"),
        ({"methods": ["fedavg"], "grid": {"training.lr": [1.0]}}, {}, "unknown key 'training.lr'"),
        ({"methods": ["fedavg"], "grid": {"training.learning_rate": []}}, {}, "compare.grid"),
        ({"variants": [{"label": "../x", "method": {"name": "fedavg"}}]}, {}, "compare.variants.0.label"),
        ({"variants": [{"method": {"name": "fedavg", "mu": 1.0}}]}, {}, "unknown key 'method.mu'"),
        ({"variants": [{"method": {"name": "fedavg"}, "set": {"rouns": 2}}]}, {}, "unknown key 'rouns'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(write, compare, given, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        plan.load(write(**compare), **given)


@pytest.mark.parametrize("override", ["evaluation.sets=[]", "evaluation.sets.0.in_domain=false"])
def test_there_must_be_something_to_compare_by(write, override):
    with pytest.raises(RecipeError, match="variant fedavg has no set in domain to compare by"):
        plan.load(write(), chosen=["fedavg"], overrides=[override])

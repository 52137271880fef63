"""What is compared is settled, and every mistake told, before anything runs."""

import copy
import tomllib

import pytest
import tomli_w

from fedsrd.compare import plan
from fedsrd.compare.plan import slug
from fedsrd.errors import RecipeError
from fedsrd.methods import ServerOptimizerOptions as Optimizer


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
            {
                "label": "faster",
                "method": {"name": "fedavg"},
                "server_optimizer": {"name": "sgd", "momentum": 0.5},
                "grid": {"server_optimizer.learning_rate": [1.0, 2.0]},
            },
            {"method": {"name": "fedprox"}, "set": {"wire.uplink.values": "int8"}, "grid": {}},
        ],
    )
    comparison = plan.load(file)
    plain, faster, prox = comparison.variants
    assert prox.label == "fedprox"
    assert [len(comparison.points(variant)) for variant in comparison.variants] == [2, 4, 2]
    assert [run.seed for run in comparison.searches(plain)] == [0, 0]
    point = comparison.points(faster)[3]
    assert slug(point) == "training.learning_rate=0.01,server_optimizer.learning_rate=2.0"
    run = comparison.finals(faster, point)[1]
    assert (run.recipe.training.learning_rate, run.seed) == (0.01, 1)
    assert run.recipe.server_optimizer == Optimizer(name="sgd", learning_rate=2.0, momentum=0.5)
    assert run.folder(tmp_path).relative_to(tmp_path).parts == ("runs", "faster", slug(point), "seed-1")
    assert comparison.run(prox, comparison.points(prox)[0], 0).recipe.wire.uplink.values == "int8"
    # 2 + 4 + 2 points with one seed, and two more seeds of each variant at its best point.
    assert comparison.count() == 8 + 3 * 2
    again = tmp_path / "again.toml"
    again.write_text(comparison.to_toml())
    assert plan.load(again).to_toml() == comparison.to_toml()


def test_a_grid_reaches_the_server_optimizer_of_the_recipe_and_of_a_set_key_alike(write):
    """A variant's own table takes the place of the recipe's; the tables given stay as they were."""
    grid = {"server_optimizer.learning_rate": [0.1, 0.2]}
    file = write(
        methods=["fedavg"],
        grid=grid,
        variants=[
            {"label": "set", "method": {"name": "fedavg"}, "set": {"server_optimizer": {"name": "yogi"}}},
            {"label": "own", "method": {"name": "fedavg"}, "server_optimizer": {"name": "adagrad"}},
        ],
    )
    overrides = ["server_optimizer={name='sgd', learning_rate=1.0, momentum=0.9}"]
    comparison = plan.load(file, overrides=overrides)
    before = comparison.to_toml()
    rules = ({"name": "sgd", "momentum": 0.9}, {"name": "yogi"}, {"name": "adagrad"})
    for variant, rule in zip(comparison.variants, rules, strict=True):
        found = [comparison.run(variant, point, 0).recipe.server_optimizer for point in comparison.points(variant)]
        assert found == [Optimizer(learning_rate=rate, **rule) for rate in (0.1, 0.2)]
    assert comparison.to_toml() == before
    assert [variant.set for variant in comparison.variants][1] == {"server_optimizer": {"name": "yogi"}}
    with pytest.raises(RecipeError, match=r"variant fedavg is not a valid recipe:\n  server_optimizer.name: missing"):
        plan.load(write(methods=["fedavg"], grid=grid))


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
        ({}, {}, "nothing to compare.*Known: centralised, cyclic, fed-dare"),
        ({}, {"chosen": ["fedavg", "fedagv"]}, "no such method. Did you mean 'fedavg'.*Known"),
        ({}, {"chosen": ["fedavg", "fedavg"]}, "fedavg given twice"),
        ({}, {"chosen": ["fedavg"], "seeds": [1, 2, 1]}, "1 given twice"),
        ({}, {"chosen": ["fedavg"], "seeds": []}, "compare.seeds.*at least one entry"),
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


@pytest.mark.parametrize(
    "text", ["compare = 3", 'compare = "x"', 'compare = [["a"]]', "method = 3\n[compare]\nmethods = ['fedavg']"]
)
def test_tables_that_are_none_are_told(tmp_path, text):
    file = tmp_path / "recipe.toml"
    file.write_text(f'model.id = "a/b"\nclients = [{{ name = "a" }}]\n{text}\n')
    with pytest.raises(RecipeError):
        plan.load(file)

"""The plan's lengths against those of real payloads: the stored runs of the embedded main table."""

import json
from pathlib import Path

import pytest

from fedsrd import methods
from fedsrd.compare import plan
from fedsrd.core import lora
from fedsrd.planning import payloads, recipe_plan
from fedsrd.planning.architecture import architecture
from fedsrd.wire import WireOptions

SECURE = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-secure.json"
RECIPES = Path(__file__).parents[2] / "src" / "fedsrd" / "recipes"
STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-main.json"
FEEDBACK = json.loads((Path(__file__).parent / "feedback.json").read_text())
"""Bytes a client, round by round, of the comparison in feedback.toml."""
FEW_BITS = WireOptions(values="ternary", threshold=1.0, block=1024)
ROWS = {row["label"]: row for row in json.loads(STORED.read_text())["rows"]}


@pytest.fixture(scope="module")
def table():
    return architecture("embedded:smollm2-135m", 16, "all-linear").table


def density(row, table):
    """The mean density of a row's uplinks, from its densities by layer and factor."""
    whole = {"B": 0, "A": 0}
    for name, (rows, columns) in table.shapes.items():
        whole[lora.split(name)[1]] += rows * columns
    found = []
    for curve in row["curves"]:
        for factor, elements in whole.items():
            layers = [value for key, value in curve["density"].items() if key.endswith(factor)]
            found.append(elements * sum(layers) / max(len(layers), 1))
    return sum(found) / len(row["curves"]) / table.elements


@pytest.mark.embedded
@pytest.mark.parametrize(
    "name", ["fedavg", "ffa-lora", "flexlora", "fed-dare", "fedicu-style", "flora", "fedsa-lora", "fedsrd", "fedsrd-e"]
)
def test_within_three_per_cent_of_what_was_sent(name, table):
    row = ROWS[name]
    turns = row["rounds"] * row["clients"]
    found = payloads.costs(name, table, row["clients"], [WireOptions()], density(row, table))[0]
    assert found.up == pytest.approx(row["bytes_up"]["mean"] / turns, rel=0.03)
    assert found.down == pytest.approx((row["bytes_down"]["mean"]) / turns, rel=0.03)


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["fedavg", "fed-dare", "flora", "fedsa-lora", "fedsrd", "fedsrd-e"])
def test_so_is_the_smaller_sample_of_a_recipes_plan(name, table):
    row = ROWS[name]
    turns = row["rounds"] * row["clients"]
    method = methods.get(name)(methods.get(name).Options(**payloads.options_for(name, density(row, table))))
    wires = payloads.Wires(WireOptions(), WireOptions())
    found = payloads.costs_of(method, table, row["clients"], [wires], recipe_plan.WIDEST)[0]
    assert found.up == pytest.approx(row["bytes_up"]["mean"] / turns, rel=0.03)
    assert found.down == pytest.approx(row["bytes_down"]["mean"] / turns, rel=0.03)


@pytest.mark.embedded
@pytest.mark.parametrize("label", ["secure-dense", "secure-third", "secure-fedavg"])
def test_sums_and_what_the_server_makes_of_them(label):
    row = next(row for row in json.loads(SECURE.read_text())["rows"] if (row["variant"], row["seed"]) == (label, 0))
    run = next(run for run in plan.load(RECIPES / "embedded" / "secure.toml").each() if run.label == label)
    recipe = run.recipe
    sizes = architecture(recipe.model.id, recipe.lora.rank, recipe.lora.targets)
    found = recipe_plan.plan({"": recipe}, sizes, recipe_plan.setting_of(recipe, recipe_plan.Links(), 0.05))["methods"][
        0
    ]
    turns = row["rounds"] * row["clients"]
    assert found["up_bytes"] == pytest.approx(row["bytes_up"] / turns, rel=0.01)
    assert found["down_bytes"] == pytest.approx(row["bytes_down"] / turns, rel=0.06)


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "wire"), [("fedsrd-ef", WireOptions()), ("sparseloco", WireOptions()), ("cyclic", FEW_BITS)]
)
def test_so_it_is_with_feedback_once_what_is_kept_has_filled(name, wire, table):
    found = payloads.costs(name, table, 4, [wire], 0.052)[0]
    for planned, sent in ((found.up, FEEDBACK[name]["up"]), (found.down, FEEDBACK[name]["down"])):
        # The second cycle of three rounds: in the first nobody has kept much, and where B is zero A counts nothing.
        assert planned == pytest.approx(sum(sent[3:]) / 3, rel=0.03)

"""What people are told of a wrong value: what was given and what is expected, without Python's words."""

import copy
import re

import pytest

from fedsrd import recipe as recipes
from fedsrd.errors import RecipeError
from fedsrd.explain import tables
from fedsrd.recipe import Recipe

CLIENTS = [{"name": "a", "data": {"source": "a.jsonl"}}, {"name": "b", "data": {"source": "b.jsonl"}}]
WHOLE = {
    "model": {"id": "m"},
    "method": {"name": "fedavg"},
    "server_optimizer": {"name": "adam", "learning_rate": 0.1},
    "privacy": {"examples": {"epsilon": 1.0, "delta": 1e-5}, "clients": {"clip": 1.0, "noise_multiplier": 1.0}},
    "wire": {"sum": {}},
    "clients": CLIENTS,
    "evaluation": {"sets": [{"name": "s", "data": {"source": "s.jsonl"}}]},
}
WRONG = ["four", 4, -4, 4.5, float("nan"), True, [], ["x"], [4], {}, {"x": 1}, "", "a b", 10**30]
PYTHONS = re.compile(
    r"dictionary|instance of|Input|should|pattern|regex|<class|NoneType|Literal|literal\[|pydantic|list\["
)


def keys():
    """Every key of a recipe that says all, dotted."""
    found = []
    for table, known, prefix in tables(Recipe, WHOLE, ""):
        del table
        found += [f"{prefix}.{key}".strip(".") for key in known]
    return sorted(set(found))


def message(key, value):
    """What is said of a value; "" where it is a good one."""
    tree = copy.deepcopy(WHOLE)
    recipes.put(tree, key, value, "here")
    try:
        recipes.parse(tree)
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", keys())
def test_no_message_speaks_python(key):
    told = [text for text in (message(key, value) for value in WRONG) if text]
    assert told
    assert [text for text in told if PYTHONS.search(text)] == []


def test_a_choice_between_kinds_is_one_line():
    with pytest.raises(RecipeError, match=r"lora\.targets = 4: expected 'all-linear', or a list$"):
        recipes.parse({**WHOLE, "lora": {"targets": 4}})
    with pytest.raises(RecipeError, match=r"wire\.uplink = 'int4': expected a table$"):
        recipes.parse({**WHOLE, "wire": {"uplink": "int4"}})
    with pytest.raises(RecipeError, match=r"model\.id = '': expected text that is not empty"):
        recipes.parse({**WHOLE, "model": {"id": ""}})

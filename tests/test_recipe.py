"""Recipes: TOML in and out, and one clear message for every mistake."""

import re
import tomllib
from pathlib import Path

import pytest

from fedsrd import recipe as recipes
from fedsrd.errors import RecipeError


def test_the_embedded_default_resolves_and_comes_back_the_same():
    recipe = recipes.load(None)
    text = recipe.to_toml({"torch": "2"})
    again = recipes.parse(tomllib.loads(text))
    assert again.resolved() == recipe.resolved()
    assert again.environment == {"torch": "2"}
    assert recipe.method["rescale"] == "l1"  # defaults are filled in, so the stored recipe says everything
    assert [client.name for client in recipe.clients] == ["code", "medical", "finance", "math"]


def test_overrides():
    recipe = recipes.load(
        None, ["training.steps=7", "clients.1.name=ward", "method.alpha=0.9", 'lora.targets=["q_proj"]']
    )
    assert (recipe.training.steps, recipe.clients[1].name) == (7, "ward")
    assert recipe.method["alpha"] == 0.9
    assert recipe.lora.targets == ["q_proj"]
    assert recipes.load(None, ['lora.targets=[\n  "q_proj",\n]']).lora.targets == ["q_proj"]
    assert recipes.load(None, ["model.id=some/model"]).model.id == "some/model"
    assert recipes.load(None, ['method={name="fedavg"}']).method["name"] == "fedavg"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=3", "unknown key 'training.step': did you mean 'steps'"),
        ("trainin.steps=3", "unknown key 'trainin': did you mean 'training'"),
        ("clients.0.data.sorce=x", "unknown key 'clients.0.data.sorce': did you mean 'source'"),
        ("evaluation.sets.0.nam=x", "unknown key 'evaluation.sets.0.nam': did you mean 'name'"),
        ("method.alpa=1", "unknown key 'method.alpa': did you mean 'alpha'"),
        ("method.alpha=1.0", r"method.alpha = 1.0: .*less than 1"),
        ("method.alpha=nan", r"method.alpha = nan"),
        ("method.download_sparsity=1.0", r"method.download_sparsity = 1.0: .*less than 1"),
        ("method.download_sparsity=-0.1", r"method.download_sparsity = -0.1: .*expected 0 or more"),
        ("method.name=fedsdr", "method.name = 'fedsdr': no such method. Did you mean 'fedsrd'"),
        ("method.name=3", "expected name = one of centralised"),
        ("wire.uplink.value=int4", "unknown key 'wire.uplink.value': did you mean 'values'"),
        ("wire.uplink.values=int5", "wire.uplink.values = 'int5': expected one of 'float32', 'bfloat16'"),
        (
            "wire.uplink={values='bfloat16', threshold=0.5}",
            "wire.uplink: threshold 0.5 with values bfloat16: floats have",
        ),
        ("wire.uplink.threshold=0", "wire.uplink.threshold = 0: .*expected more than 0"),
        ("wire.downlink.threshold=17", "wire.downlink.threshold = 17: .*expected at most 16"),
        ("wire.downlink.positions=seed", "wire.downlink.positions = 'seed': expected one of 'auto', 'bitmap'"),
        ("wire.downlink.block=0", "wire.downlink.block = 0: .*expected 1 or more"),
        ("rounds=0", "rounds = 0: .*expected 1 or more"),
        ("rounds=many", "rounds = 'many': expected a whole number"),
        ("lora.rank=-1", "lora.rank = -1"),
        ("clients.0.name=medical", "clients: two are called 'medical'"),
        ("clients=[]", "clients"),
        ("clients.7.name=x", "the recipe has nothing at 'clients.7.name'"),
        ("rounds", "expected key=value"),
        ("name=../../etc", "name = '../../etc'"),
        ("clients.0.name=a/b", "clients.0.name = 'a/b'"),
    ],
)
def test_mistakes_name_the_key_and_what_was_expected(override, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load(None, [override])


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        recipes.load(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("rounds = = 3")
    with pytest.raises(RecipeError, match=r"a.toml: not valid TOML: .*line 1"):
        recipes.load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8"):
        recipes.load(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("rounds = 3")
    with pytest.raises(RecipeError, match=r"model: missing\n  clients: missing"):
        recipes.load(tmp_path / "c.toml")


def test_the_readmes_recipe_is_one():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    text = re.search(r"```toml\n(.*?)```", readme, re.DOTALL)[1]
    recipe = recipes.parse(tomllib.loads(text))
    assert [client.name for client in recipe.clients] == ["ward-a", "ward-b", "math"]


def test_what_is_written_of_a_recipe_is_the_same_recipe():
    """A run's folder is compared with the recipe that it is resumed with: defaults must be resolved in both."""
    bare = {"model": {"id": "a/b"}, "clients": [{"name": "a"}]}
    written = recipes.parse(bare).to_toml({})
    assert recipes.parse(tomllib.loads(written)).resolved() == recipes.parse(bare).resolved()
    assert recipes.parse(bare).method["alpha"] == 0.85

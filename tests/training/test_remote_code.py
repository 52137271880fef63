"""Program code in a model's folder: refused, never asked about, and run only where the machine's owner names it."""

import ast
import builtins
import inspect
import json
import shutil
from pathlib import Path

import pytest
from watching import Watch

import fedsrd
from fedsrd import recipe as recipes
from fedsrd.errors import ModelError
from fedsrd.evaluation.model_loader import ModelLoader
from fedsrd.evaluation.subjects import resolve
from fedsrd.federation import setup
from fedsrd.federation.session import Assets
from fedsrd.planning.architecture import architecture
from fedsrd.training import loading
from fedsrd.training.models import AdaptedModel, lora_config
from fedsrd.training.options import BaseOptions

CPU = BaseOptions(dtype="float32", device="cpu")
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({proof!r}).write_text("executed")
class Config(LlamaConfig):
    model_type = "theirs"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """A file that their code writes. Whoever is asked says yes."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "yes")
    monkeypatch.delenv(loading.TRUST, raising=False)
    return tmp_path / "proof"


@pytest.fixture
def theirs(tiny_model, tmp_path, proof):
    """Makes the tiny model's folder with code of its own in it."""

    def make(kind):
        folder = tmp_path / f"theirs-{kind}"
        shutil.copytree(tiny_model, folder)
        (folder / "theirs.py").write_text(CODE.format(proof=str(proof)))
        config = json.loads((folder / "config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        if kind == "model":
            config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
            config["auto_map"]["AutoModelForCausalLM"] = "theirs.Model"
        elif kind == "known":
            config["auto_map"] = {"AutoModelForCausalLM": "theirs.Model", "AutoConfig": "theirs.Config"}
        elif kind == "tokenizer":
            tokenizer |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "theirs.Tokenizer"]}}
        elif kind == "generate":
            (folder / "custom_generate").mkdir()
            shutil.copy(folder / "theirs.py", folder / "custom_generate" / "generate.py")
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return folder

    return make


def check_recipe(folder, tree):
    tree["model"]["id"] = str(folder)
    setup.check(recipes.parse(tree), Watch(), Assets())


WAYS = {
    "run": check_recipe,
    "plan": lambda folder, _: architecture(str(folder), 4, "all-linear"),
    "plan a config": lambda folder, _: architecture(str(folder / "config.json"), 4, "all-linear"),
    "load": lambda folder, _: AdaptedModel.load(str(folder), lora_config(4, 8, 0.0, "all-linear"), CPU),
    "identify": lambda folder, _: ModelLoader("cpu", "float32").identity(resolve([str(folder)])[0]),
    "evaluate": lambda folder, _: ModelLoader("cpu", "float32").load(resolve([str(folder)])[0]),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_is_refused_and_nobody_is_asked(way, theirs, proof, tiny_recipe):
    with pytest.raises(ModelError, match="program code of its own .* not run: .*FEDSRD_TRUST_REMOTE_CODE=") as caught:
        WAYS[way](theirs("model"), tiny_recipe)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["known", "generate"])
def test_code_that_is_not_needed_is_left_alone(kind, theirs, proof):
    loading.load_base(str(theirs(kind)), CPU)
    assert not proof.exists()


def test_a_tokenizers_code_is_refused_too(theirs, proof):
    with pytest.raises(ModelError, match=loading.TRUST):
        loading.load_base(str(theirs("tokenizer")), CPU)
    assert not proof.exists()


@pytest.mark.parametrize("way", ["run", "load", "evaluate"])
def test_the_machines_owner_may_name_the_folder(way, theirs, proof, tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = theirs("model")
    monkeypatch.setenv(loading.TRUST, f"some/model, {folder.name}")
    WAYS[way](folder, tiny_recipe)
    assert proof.read_text() == "executed"


@pytest.mark.parametrize(
    ("listed", "revision", "trusted"),
    [
        ("", None, False),
        ("a/b", None, True),
        ("c/d, a/b", None, True),
        ("a/b", "refs/pr/1", False),
        ("a/b@5c3a", "5c3a", True),
        ("a/b@5c3a", None, False),
        ("a/b@5c3a", "refs/pr/1", False),
        ("a", None, False),
        ("a/b/", None, False),
        ("1", None, False),
        ("*", None, False),
    ],
)
def test_a_name_is_that_of_one_revision(listed, revision, trusted, monkeypatch):
    monkeypatch.setenv(loading.TRUST, listed)
    assert loading.trusts("a/b", revision) is trusted


def test_no_recipe_can_ask_for_it():
    with pytest.raises(recipes.RecipeError, match="unknown key 'model.trust_remote_code'"):
        recipes.load(None, ["model.trust_remote_code=true"])


def test_every_call_says_whether_it_trusts():
    import datasets

    # Data sets have no code any more; if that comes back, the calls must say so.
    assert "trust_remote_code" not in inspect.signature(datasets.load_dataset).parameters
    found, wrong = 0, []
    for file in sorted(Path(fedsrd.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("from_pretrained", "from_config", "pipeline"):
                continue
            owner = ast.unparse(node.func.value)
            # PEFT takes a model that is loaded, and an adapter, which is data.
            if owner != "PeftModel":
                found += 1
                if not any(keyword.arg == "trust_remote_code" for keyword in node.keywords):
                    wrong.append(f"{file.name}:{node.lineno}: {owner}.{node.func.attr}")
    assert found >= 7
    assert wrong == []

"""Every block of the documentation: commands are run, or marked with why not and then parsed; recipes are valid; Python
runs.

Words behind a block's language: `hub` and `gpu` need one, `hours` takes that long, `make` is run by CI, `simulation`
and `elsewhere` by other tests, `part` is a part of a program, `loop` is given the names it needs. docs/deploy.md is run
by tests/flower/test_deployment.py.
"""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import questions
import tomli_w
from typer.main import get_command
from typer.testing import CliRunner

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.compare import plan
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "deploy.md")]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {"hub", "gpu", "hours", "make", "simulation", "elsewhere"}


def blocks(*languages):
    found = []
    for page in PAGES:
        for language, words, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                found.append(pytest.param(words.strip(), text, id=f"{page.name}-{len(found)}"))
    assert found
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model):
    """A folder with what the pages speak of: hospital.toml, runs, questions."""
    home = tmp_path_factory.mktemp("world")
    clients = []
    for name in ("ward-a", "ward-b"):
        rows = [{"instruction": f"add {i} and 1", "response": f"it is {i + 1}"} for i in range(8)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        clients.append({"name": name, "data": {"source": str(home / f"{name}.jsonl")}})
    tree = {
        "name": "hospital",
        "rounds": 1,
        "model": {"id": str(tiny_model), "dtype": "float32", "device": "cpu"},
        "lora": {"rank": 4, "alpha": 8},
        "training": {"steps": 1, "batch_size": 2, "max_length": 64},
        "clients": clients,
        "evaluation": {"examples": 2, "sets": [{"name": "held", "data": clients[0]["data"]}]},
    }
    (home / "hospital.toml").write_text(tomli_w.dumps(tree), encoding="utf-8")
    watch = SimpleNamespace(say=print, warn=print, activity=lambda *_: None, round_done=lambda _: None)
    first = home / "runs" / "hospital"
    local.run(setup.prepare(recipes.parse(tree), RunFolder(first), resume=False, observer=watch), watch)
    for name in ("fedsrd", "fedavg", "embedded-20261121-090000"):
        shutil.copytree(first, home / "runs" / name)
    questions.write(home / "questions")
    for path in (home / "questions").iterdir():
        path.rename(home / path.name)
    shutil.copytree(tiny_model, home / "MODEL")
    return home


@pytest.mark.embedded
@pytest.mark.parametrize(("words", "text"), blocks("bash", "sh"))
def test_commands(words, text, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("BROWSER", "true")
    assert not words or words in NOT_RUN, f"a block is marked {words!r}, which means nothing"
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        given = [part for part in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", part)]
        if not given or given[0] != "fedsrd":
            known = ("make", "pip", "pipx", "export", "flwr", "git", "tensorboard", "cd")
            assert not given or given[0] in known, f"{line}: not a command that the tests know"
            continue
        if words:
            # At least there are such options.
            get_command(app).commands[given[1]].make_context(given[1], given[2:])
            continue
        done = CliRunner().invoke(app, given[1:], catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.parametrize(("words", "text"), blocks("toml"))
def test_recipes(words, text, tmp_path):
    tree = tomllib.loads(text)
    if "random-k" in text:
        return  # tests/methods/test_add_a_method.py has that method
    if "extends" in tree:
        shutil.copytree(ROOT / "src" / "fedsrd" / "recipes" / "embedded", tmp_path / "recipes")
        file = tmp_path / "recipes" / "mine.toml"
        file.write_text(text, encoding="utf-8")
        assert plan.load(file).variants
        return
    whole = recipes._merged(recipes.read(None)[0], tree)
    if "compare" in whole:
        file = tmp_path / "recipe.toml"
        file.write_text(tomli_w.dumps(whole), encoding="utf-8")
        assert plan.load(file).variants
    else:
        assert recipes.parse(whole).clients


@pytest.mark.parametrize(("words", "text"), blocks("python"))
def test_python(words, text, world, monkeypatch):
    monkeypatch.chdir(world)
    code = compile(text, "<block>", "exec")
    if words == "loop":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained("MODEL"), lora)

        def train(model):
            for name, tensor in model.named_parameters():
                if "lora_" in name:
                    tensor.data += 0.01 * tensor.data.abs().mean() + 1e-3

        names = {"model": model, "clients": [SimpleNamespace(name=name, train=train) for name in "ab"]}
        exec(code, names)
        assert names["server"].round == 3
    elif not words:
        exec(code, {})

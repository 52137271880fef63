"""A recipe's plan against what its run sends, and the recipe's own names."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import tomli_w
from typer.testing import CliRunner

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.federation import local, setup
from fedsrd.planning import architecture, recipe_plan
from fedsrd.runs.folder import RunFolder


def written(tree, folder):
    file = folder / "recipe.toml"
    file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return file


def plan(*arguments):
    found = CliRunner().invoke(app, ["plan", *map(str, arguments), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


SUMS = {"wire": {"sum": {"levels": 7}}}
SUMMED = {
    "dense": {"name": "fedavg"},
    "a part in turn": {"name": "fedavg", "sparsifier": "cyclic", "period": 2, "feedback": "ef14"},
    "factors in turn": {"name": "fedsrd-e", "sparsifier": "dense", "project": False, "decompose_at": "client"},
}


@pytest.mark.parametrize("case", SUMMED)
def test_sums_are_as_long_as_the_runs(case, tiny_recipe, tmp_path):
    # Rounds enough for both factors' turns.
    tree = {**tiny_recipe, **SUMS, "method": SUMMED[case], "rounds": 4, "lora": {"rank": 8, "alpha": 8}}
    tree["evaluation"] = {"every": 0, "examples": 1}
    recipe = recipes.parse(tree)
    watch = SimpleNamespace(say=print, warn=print, activity=lambda *_: None, round_done=lambda _: None)
    folder = RunFolder(tmp_path / "run")
    local.run(setup.prepare(recipe, folder, resume=False, observer=watch), watch)
    sent = sum(sum(record.bytes_up.values()) for record in folder.records() if record.round > 0) / 8
    sizes = architecture.architecture(recipe.model.id, recipe.lora.rank, recipe.lora.targets)
    setting = recipe_plan.setting_of(recipe, recipe_plan.Links(), 0.05)
    row = recipe_plan.plan({"": recipe}, sizes, setting)["methods"][0]
    assert row["up_bytes"] == pytest.approx(sent, rel=0.01)


def test_everything_comes_from_the_recipe_and_options_change_it(tiny_recipe, tmp_path):
    tree = {**tiny_recipe, "participation": {"fraction": 0.5}, "training": {**tiny_recipe["training"], "packing": True}}
    file = written(tree, tmp_path)
    found = plan(file)
    setting = found["setting"]
    assert (setting["clients"], setting["rounds"], setting["batch"], setting["length"]) == (1, 3, 2, 64)
    assert (setting["dtype"], setting["checkpointing"]) == ("float32", False)
    assert found["recipe"]["clients"] == ["left", "right"]
    assert [row["method"] for row in found["methods"]] == ["fedsrd", "fedavg"]
    changed = plan(
        file, "--rounds", "9", "--rank", "2", "--targets", "q_proj,v_proj", "--dtype", "int4", "--clients", "2",
        "--max-length", "32", "--set", "method.name=flora", "--gradient-checkpointing",
    )  # fmt: skip
    assert changed["adapted_modules"] == 4
    assert (changed["setting"]["rounds"], changed["setting"]["dtype"], changed["setting"]["clients"]) == (9, "int4", 2)
    assert changed["setting"]["checkpointing"] is True
    assert changed["methods"][0]["method"] == "flora"


def test_a_budget_is_the_recipes(tiny_recipe, tmp_path):
    file = written({**tiny_recipe, "privacy": {"examples": {"epsilon": 2.0, "delta": 1e-4}}}, tmp_path)
    found = plan(file, "--examples", "400")["privacy"]
    # Two sequences at a time, twice a step; two steps a round.
    assert (found["batch"], found["steps"], found["rounds"], found["delta"]) == (4, 2, 3, 1e-4)
    assert [row["epsilon"] for row in found["noise"]] == [1, 2, 3, 8]
    assert plan(file, "--examples", "400", "--delta", "1e-6")["privacy"]["delta"] == 1e-6


def test_the_long_table_is_there_where_it_is_asked_for(tiny_recipe, tmp_path):
    found = plan(written(tiny_recipe, tmp_path), "--method", "fedavg,flora")
    assert [row["method"] for row in found["methods"]] == ["fedavg"] * 5 + ["flora"] * 5


def test_who_was_not_asked_gets_what_it_missed_and_never_more_than_the_state(tiny_recipe, tmp_path):
    everybody = plan(written(tiny_recipe, tmp_path))["methods"]
    tree = {**tiny_recipe, "participation": {"fraction": 0.5}}
    half = plan(written(tree, tmp_path), "--set", "method.name=fedavg")["methods"][0]
    assert half["total_bytes"] == pytest.approx(3 * (half["up_bytes"] + half["down_bytes"]), rel=0.2)
    assert everybody[0]["total_bytes"] == pytest.approx(
        6 * (everybody[0]["up_bytes"] + everybody[0]["down_bytes"]), rel=0.01
    )


def test_a_reference_sends_nothing_and_is_planned_all_the_same(tiny_recipe, tmp_path):
    found = plan(written({**tiny_recipe, "method": {"name": "local"}}, tmp_path))
    assert (found["methods"][0]["up_bytes"], found["methods"][0]["values"]) == (0, "sends nothing")
    shown = CliRunner().invoke(app, ["plan", str(written({**tiny_recipe, "method": {"name": "local"}}, tmp_path))])
    assert shown.exit_code == 0, shown.output


def test_a_comparison_has_a_row_a_variant(tiny_recipe, tmp_path):
    variants = [{"label": "half", "method": {"name": "fedavg"}, "set": {"wire.uplink.values": "bfloat16"}}]
    tree = {**tiny_recipe, "compare": {"methods": ["fedsrd", "flora"], "variants": variants}}
    file = written(tree, tmp_path)
    rows = {row["method"]: row for row in plan(file)["methods"]}
    assert list(rows) == ["fedsrd", "flora", "half", "fedavg"]
    assert rows["half"]["values"] == "bfloat16, float32"
    assert rows["half"]["up_bytes"] < 0.6 * rows["fedavg"]["up_bytes"]
    shown = CliRunner().invoke(app, ["plan", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "tiny: 3 variants" in shown.output


def test_fedavg_itself_stands_once(tiny_recipe, tmp_path):
    found = plan(written({**tiny_recipe, "method": {"name": "fedavg"}}, tmp_path))
    assert [row["method"] for row in found["methods"]] == ["fedavg"]
    tree = {**tiny_recipe, "method": {"name": "fedavg", "sparsifier": "cyclic"}}
    assert len(plan(written(tree, tmp_path))["methods"]) == 2


def test_the_table_speaks_the_recipes_names(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    tree = {**tiny_recipe, **SUMS, "method": {"name": "fedavg"}, "privacy": {"secure_aggregation": {"threshold": 2}}}
    shown = CliRunner().invoke(app, ["plan", str(written(tree, tmp_path))]).output
    assert "tiny: fedavg, rank 4, 2 clients (left, right), 3 rounds, secure aggregation" in shown
    assert "5 bits in sums, float32" in shown
    assert "The whole run: " in shown
    assert "The handshakes of secure aggregation come on top" in shown
    assert "(assumed" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fedsrd plan mine.toml"),
        (["--model", "x/y", "--set", "rounds=3"], "--set: it changes a recipe's keys"),
    ],
)
def test_what_is_missing_is_named(arguments, message):
    found = CliRunner().invoke(app, ["plan", *arguments])
    assert found.exit_code == 2
    assert message in found.stderr


def test_a_plan_of_a_large_model_imports_no_model_library(tiny_recipe, tmp_path):
    folder = tmp_path / "three-billion"
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    file = written({**tiny_recipe, "model": {"id": str(folder)}, "lora": {"rank": 64}}, tmp_path)
    program = (
        "import sys; from typer.testing import CliRunner; from fedsrd.cli import app\n"
        f"found = CliRunner().invoke(app, ['plan', {str(file)!r}]); assert found.exit_code == 0, found.output\n"
        "print([name for name in ('transformers', 'peft', 'datasets', 'pandas') if name in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    # Three seconds on an idle machine (benchmarks say so); here only that nobody waits for a network or a library.
    assert time.monotonic() - began < 30

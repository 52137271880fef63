"""fedsrd init as a user meets it: with flags, asked, and refused."""

import json

import pytest
from typer.testing import CliRunner

from fedsrd import recipe as recipes
from fedsrd.cli import app
from fedsrd.cli import init as command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two sites' data."""
    monkeypatch.chdir(tmp_path)
    for name, keys in (("a", ("question", "answer")), ("b", ("prompt", "completion")), ("odd", ("left", "right"))):
        rows = [{keys[0]: f"add {i} and 1", keys[1]: f"it is {i + 1}"} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def init(*arguments, said=None):
    return CliRunner().invoke(app, ["init", *map(str, arguments)], input=said)


def test_flags_alone_give_a_recipe_that_can_be_run(here, tiny_model):
    done = init("--model", tiny_model, "--site", "a=a.jsonl", "--site", "b=b.jsonl", "--held-out", "h=a.jsonl", "--cpu")
    assert done.exit_code == 0, done.output
    for expected in ("Wrote federation.toml", "ready", "[[it is", "fedsrd run federation.toml"):
        assert expected in done.output
    recipe = recipes.load(here / "federation.toml")
    assert [client.name for client in recipe.clients] == ["a", "b"]
    assert recipe.clients[1].data.columns == {"instruction": "prompt", "response": "completion"}
    assert (recipe.model.device, recipe.training.max_length, recipe.training.prompt) == ("cpu", 64, "chat")
    ran = CliRunner().invoke(app, ["run", "federation.toml", "--set", "rounds=1", "--set", "training.steps=1"])
    assert ran.exit_code == 0, ran.output


def test_an_existing_file_is_left_as_it_is(here, tiny_model):
    (here / "federation.toml").write_text("mine")
    done = init("--model", tiny_model, "--site", "a=a.jsonl")
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert (here / "federation.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model ID and --site NAME=DATA missing"),
        (["--model", "m"], "--site NAME=DATA missing"),
        (["--model", "m", "--site", "a.jsonl"], "--site 'a.jsonl': expected NAME=DATA"),
        (["--model", "m", "--site", "a b=a.jsonl"], "a name has letters"),
        (["--model", "m", "--site", "a=none.jsonl"], "a: none.jsonl: no such file"),
        (["--model", "m", "--site", "a=odd.jsonl"], "has the columns left, right: which of them are what?"),
        (["--model", "m", "--site", "a=a.jsonl", "--columns", "question"], "expected ROLE=NAME"),
        (["x.txt", "--model", "m", "--site", "a=a.jsonl"], "ends in .toml"),
        (["none/x.toml", "--model", "m", "--site", "a=a.jsonl"], "there is no folder none"),
    ],
)
def test_mistakes_end_in_one_message_and_write_nothing(here, arguments, message):
    done = init(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (here / "federation.toml").exists()


@pytest.mark.parametrize("flag", [["--method", "fedsdr"], ["--site", "a=b.jsonl"]])
def test_what_is_no_recipe_is_not_written(here, flag):
    done = init("--model", "m", "--site", "a=a.jsonl", *flag)
    assert done.exit_code != 0
    assert not (here / "federation.toml").exists()


def test_columns_that_nobody_knows_can_be_named(here, tiny_model):
    done = init("--model", tiny_model, "--site", "a=odd.jsonl", "--columns", "instruction=left,response=right", "--cpu")
    assert done.exit_code == 0, done.output
    assert recipes.load(here / "federation.toml").clients[0].data.columns == {
        "instruction": "left",
        "response": "right",
    }


def test_at_a_terminal_it_asks_for_what_is_missing(here, tiny_model, monkeypatch):
    monkeypatch.setattr(command, "_at_a_terminal", lambda: True)
    said = [tiny_model, "ward-a", "a.jsonl", "", "odd.jsonl", "", "nothing", "left", "right"]
    done = init("mine.toml", "--cpu", said="".join(f"{line}\n" for line in said))
    assert done.exit_code == 0, done.output
    recipe = recipes.load(here / "mine.toml")
    assert recipe.name == "mine"
    assert [(client.name, client.data.source) for client in recipe.clients] == [
        ("ward-a", "a.jsonl"),
        ("site-2", "odd.jsonl"),
    ]
    assert "There is no such column." in done.output


def test_a_recipe_that_cannot_be_run_yet_is_written_and_said(here):
    done = init("--model", "./nowhere", "--site", "a=a.jsonl", "--epsilon", "8")
    assert done.exit_code == 1
    assert "Mend federation.toml" in done.output
    assert recipes.load(here / "federation.toml").privacy.examples.epsilon == 8


def test_parquet_csv_and_saved_data_sets_are_looked_at_too(here, tiny_model):
    import datasets

    rows = datasets.Dataset.from_dict({"id": [1, 2], "query": ["a", "b"], "answer": ["c", "d"]})
    rows.to_parquet("p.parquet")
    rows.to_csv("c.csv")
    rows.save_to_disk("saved")
    sites = [flag for name in ("p.parquet", "c.csv", "saved") for flag in ("--site", f"{name}={name}")]
    done = init("--model", tiny_model, *sites, "--cpu")
    assert done.exit_code == 0, done.output
    for client in recipes.load(here / "federation.toml").clients:
        assert client.data.columns == {"instruction": "query", "response": "answer"}


def test_a_column_called_input_that_is_the_instruction_is_taken_once(here):
    from fedsrd.data.local import load_local

    (here / "io.jsonl").write_text('{"input": "a", "output": "b"}\n')
    found = load_local("io.jsonl", columns={"instruction": "input", "response": "output"}, template=None)
    assert found[0].instruction == "a"

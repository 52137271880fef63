"""fedsrd check as a user meets it."""

import io
import json

import pytest
import tomli_w
from typer.testing import CliRunner

from fedsrd.cli import app
from fedsrd.report import check as shown
from fedsrd.report.screen import Screen


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(tiny_recipe))
    return file


def fedsrd(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_sound_recipe_is_ready_and_marks_what_is_trained(recipe_file):
    done = fedsrd("check", recipe_file)
    assert done.exit_code == 0, done.output
    for expected in ("ready", "left", "held out", "[[it is", "<|im_end|>]]", "fedsrd, rank 4", "Time here"):
        assert expected in done.output
    assert "[[" not in fedsrd("check", recipe_file, "--no-example").output


def test_what_is_wrong_comes_first_and_ends_in_one(recipe_file, tmp_path):
    (tmp_path / "left.jsonl").unlink()
    done = fedsrd("check", recipe_file)
    assert done.exit_code == 1
    assert done.output.startswith("error    left: ")
    found = json.loads(fedsrd("check", recipe_file, "--json", "--set", "model.device=moon").stdout)
    assert len(found["errors"]) == 3


@pytest.mark.parametrize("change", ["lora.rnk=3", "rounds=0"])
def test_a_recipe_that_cannot_be_read_is_an_error_like_others(recipe_file, change):
    done = fedsrd("check", recipe_file, "--set", change)
    assert done.exit_code == 1
    assert done.output.startswith("error")
    assert json.loads(fedsrd("check", recipe_file, "--set", change, "--json").stdout)["errors"]


def test_fewer_rows_are_said(recipe_file):
    done = fedsrd("check", recipe_file, "--rows", "5")
    assert "5 examples a set, drawn at random" in done.output
    assert "of all examples" in fedsrd("check", recipe_file).output.replace("\n", " ")


def test_of_a_comparison_all_variants_settings_are_checked(tiny_recipe, tmp_path):
    file = tmp_path / "compare.toml"
    variants = [{"label": "robust", "method": {"name": "fedavg"}, "set": {"participation.robust": "krum"}}]
    file.write_text(tomli_w.dumps({**tiny_recipe, "compare": {"methods": ["fedavg"], "variants": variants}}))
    done = fedsrd("check", file)
    assert done.exit_code == 1
    assert done.output.startswith('error    robust: participation.robust = "krum"')
    assert "settings are checked of all 2 variants" in done.output.replace("\n", " ")


def test_with_colours_there_are_no_brackets():
    found = {"name": "a", "parts": [{"text": "ask", "trained": False, "tokens": 1}]}
    found["parts"].append({"text": "[bold]answer\x1b[2J", "trained": True, "tokens": 2})
    stream = io.StringIO()
    screen = Screen(file=stream, force_terminal=True, color_system="standard", width=200, legacy_windows=False)
    screen.print(shown.example(found, colour=True))
    assert "[[" not in stream.getvalue()
    assert "[bold]answer\N{REPLACEMENT CHARACTER}[2J" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_a_long_stretch_is_shown_without_its_middle():
    found = {"name": "a", "parts": [{"text": "x" * 5000, "trained": True, "tokens": 9}]}
    text = shown.example(found, colour=False).plain
    assert "(3,800 characters)" in text
    assert len(text) < 1500

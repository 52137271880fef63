"""What is found of a recipe without training, against what a reader counts by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedsrd import recipe as recipes
from fedsrd.data.examples import Example, normalised
from fedsrd.data.prompt import encode
from fedsrd.planning import check as checking
from fedsrd.planning import examples, machine
from fedsrd.planning.recipe_plan import Links

TEXTS = st.text("ab cd\n", min_size=1, max_size=60).filter(str.strip)
SETS = st.lists(st.builds(Example, TEXTS, TEXTS), min_size=1, max_size=12)


def check(tree, **how):
    return checking.check({"": recipes.parse(tree)}, how.pop("rows", 1000), Links(), 0.05, **how)


def of(found, name):
    return next(row for row in found["sets"] if row["name"] == name and not row["held_out"])


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@given(SETS, st.integers(8, 64))
def test_lengths_and_cuts_are_those_of_plain_counting(tokenizer, found, max_length):
    got = examples.lengths(found, "chat", tokenizer, max_length)
    whole = [encode(example, "chat", tokenizer, 10**6) for example in found]
    kept = [encode(example, "chat", tokenizer, max_length) for example in found]
    sizes = sorted(len(e.prompt) + len(e.response) for e in whole)
    assert (got.measured, got.longest) == (len(found), sizes[-1])
    assert sizes[0] <= got.median <= got.high <= sizes[-1]
    assert sum(size <= got.median for size in sizes) >= len(sizes) / 2
    assert got.prompts_cut == sum(len(k.prompt) < len(w.prompt) for k, w in zip(kept, whole, strict=True))
    assert got.responses_cut == sum(len(k.response) < len(w.response) for k, w in zip(kept, whole, strict=True))
    assert got.mean == pytest.approx(sum(len(e.prompt) + len(e.response) for e in kept) / len(found))
    assert got.trained == pytest.approx(sum(len(e.response) for e in kept) / len(found))


@given(SETS, SETS)
def test_repeats_and_shared_examples_are_those_of_plain_counting(one, other):
    def plain(of):
        return [normalised(f"{e.instruction}\n{e.response}") for e in of]

    prints = {"one": examples.fingerprints(one), "other": examples.fingerprints(other)}
    assert examples.repeats(prints["one"]) == len(one) - len(set(plain(one)))
    both = sum(text in set(plain(other)) for text in plain(one))
    assert examples.shared("one", prints) == ({"other": both} if both else {})


@given(SETS, st.integers(1, 20))
def test_a_sample_is_some_of_them_in_order_and_the_same_every_time(found, most):
    got = examples.sample(found, most, 7, "a")
    assert got == examples.sample(found, most, 7, "a")
    assert len(got) == min(most, len(found))
    rest = iter(found)
    assert all(any(example is other for other in rest) for example in got)


def test_the_rendered_example_is_what_is_trained_on(tokenizer):
    parts = examples.rendered(Example("what is it?", "it is five"), "chat", tokenizer, 200)
    assert [part.trained for part in parts] == [False, True]
    assert parts[1].text == "it is five<|im_end|>"
    assert "<|im_start|>user\nwhat is it?" in parts[0].text
    encoded = encode(Example("what is it?", "it is five"), "chat", tokenizer, 200)
    assert [part.tokens for part in parts] == [len(encoded.prompt), len(encoded.response)]


def test_a_sound_recipe_can_be_run_and_nothing_is_written(tiny_recipe, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = check(tiny_recipe)
    assert found["errors"] == []
    assert sorted(tmp_path.rglob("*")) == before
    assert of(found, "left")["examples"] == 12
    assert found["plan"]["methods"][0]["method"] == "fedsrd"
    assert found["memory"]["total"] > 0
    assert found["training"]["tokens_a_client_and_round"] > 0
    assert found["example"]["name"] == "left"
    json.dumps(found)


def test_all_that_is_wrong_is_said_at_once(tiny_recipe, tmp_path):
    (tmp_path / "left.jsonl").unlink()
    write(tmp_path / "right.jsonl", [{"question": "a", "response": "b"}])
    tree = {
        **tiny_recipe,
        "model": {**tiny_recipe["model"], "device": "moon"},
        "participation": {"robust": "krum", "byzantine": 5},
        "lora": {"rank": 4096},
        "weighting": "uniform",
    }
    errors = check(tree)["errors"]
    for expected in ("left: ", "right: ", "model.device", "participation.robust", "lora.rank = 4096"):
        assert any(expected in error for error in errors), expected
    assert any(error.startswith("held-out set left: ") for error in errors)
    assert len(errors) == len(set(errors))


def test_a_missing_chat_template_is_found(tiny_recipe, tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    found = check({**tiny_recipe, "model": {**tiny_recipe["model"], "id": str(folder)}})
    assert any("no chat template" in error for error in found["errors"])
    assert of(found, "left")["tokens"] is None


def test_what_makes_a_run_worse_is_a_warning(tiny_recipe, tmp_path):
    rows = [{"instruction": f"add {i} and 1", "response": f"it is {i + 1}" * (20 if i > 3 else 1)} for i in range(10)]
    write(tmp_path / "left.jsonl", rows + rows[:5])
    tree = {**tiny_recipe, "training": {**tiny_recipe["training"], "steps": 100, "max_length": 32}}
    found = check(tree)
    assert found["errors"] == []
    warnings = "\n".join(found["warnings"])
    for expected in (
        "left: 47% of the responses are cut",
        "left: 5 of 15 examples are repeats",
        "left: 15 of its examples are in held-out set left",
        "left: a round draws 400 examples of its 15, each 26.7 times",
    ):
        assert expected in warnings, warnings
    del tree["evaluation"]
    assert any("no held-out set" in warning for warning in check(tree)["warnings"])


def test_a_client_whose_data_its_site_names_is_no_error(tiny_recipe):
    del tiny_recipe["clients"][1]["data"]
    found = check(tiny_recipe)
    assert found["errors"] == []
    assert of(found, "right")["examples"] is None
    assert any("right: has no data in this recipe" in warning for warning in found["warnings"])


def test_too_little_memory_is_a_warning(tiny_recipe, monkeypatch):
    monkeypatch.setattr(machine, "memory_of", lambda _: 1000)
    assert any("training needs about" in warning for warning in check(tiny_recipe)["warnings"])


def test_the_noise_of_an_epsilon_is_told_by_client(tiny_recipe):
    tree = {**tiny_recipe, "privacy": {"examples": {"epsilon": 8.0, "delta": 1e-3}}}
    found = check(tree)
    assert [row["name"] for row in found["privacy"]] == ["left", "right"]
    assert all(row["noise_multiplier"] > 0.3 for row in found["privacy"])
    impossible = check({**tree, "privacy": {"examples": {"epsilon": 1e-6, "delta": 1e-9}}})
    assert impossible["privacy"] or impossible["errors"]


def test_contents_are_in_the_example_and_nowhere_else(tiny_recipe):
    assert "add 3 and 1" not in json.dumps(check(tiny_recipe, example=False))
    assert check(tiny_recipe, example=False)["example"] is None


def test_this_machine_has_memory_and_speed():
    import torch

    assert machine.memory_of(torch.device("cpu")) > 1 << 28
    assert machine.flops(torch.device("cpu"), torch.float32) > 1e7
    plain = machine.training_seconds(10**9, 1000, 1e12, checkpointing=False)
    assert plain == pytest.approx(10.0)
    assert machine.training_seconds(10**9, 1000, 1e12, checkpointing=True) == pytest.approx(15.0)

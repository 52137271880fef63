"""Whatever stands in a recipe, a site's file, an option or a path: it is taken, or one message says what is wrong."""

import copy
import json
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import get_args

import annotated_types
import pytest
import tomli_w
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedsrd import cli, methods, plugins, toml
from fedsrd import recipe as recipes
from fedsrd.compare import plan
from fedsrd.data.local import load_local
from fedsrd.errors import DataError, FedSRDError, ModelError, RecipeError
from fedsrd.federation import setup
from fedsrd.federation.remote.site import site_of
from fedsrd.planning.links import bits_per_second
from fedsrd.training.loading import pick_device

EMBEDDED = resources.files("fedsrd").joinpath("recipes/embedded.toml").read_text(encoding="utf-8")
TREE = tomllib.loads(EMBEDDED)
COMPARE = {
    "methods": ["fedavg", "fedsrd"],
    "variants": [{"label": "half", "method": {"name": "fedsrd", "alpha": 0.5}, "set": {"rounds": 2}, "grid": {}}],
    "seeds": [0, 1],
    "grid": {"training.learning_rate": [1e-3, 1e-4]},
    "grid_seeds": [0],
}
DIGITS = "9" * 5000
PIECES = (
    *("[" * 5000, "{a=" * 3000, "a." * 3000 + "a=1\n", DIGITS, "0x" + "f" * 5000, "1e400", "-nan", "inf", "true", "''"),
    *("'\\u0000'", '"\\u0000"', '"\\ud800"', "\x00", "\ufeff", "\x1b[2J", "\r", "é", "\u202e", "=", "\n", "[[", "]]"),
    *('"""', "#", "extends = 'x.toml'\n", "compare = 3\n", "[method]\n", "[clients]\n", "9223372036854775808"),
)
NUMBERS = (True, 0, -1, 1 << 62, 1 << 64, 10**400, 1e308, float("inf"), float("nan"))
TEXTS = ("", "\0", "\ud800", "../x", "x" * 5000, "embedded:none", "{0}")
VALUES = st.one_of(
    st.sampled_from([None, *NUMBERS, *TEXTS]),
    st.lists(st.none() | st.integers() | st.floats() | st.text(), max_size=3),
    st.builds(lambda: {"": 1, "name": "fedsrd", "damping": 1e308}),
    st.builds(dict),
    st.integers(30, 150).map(lambda depth: nested(depth)),
)
KEYS = ("rounds", "clients.0.name", "clients.-1.name", "clients.٣.name", "method.damping", "a" + ".a" * 4000)
TAKEN = settings(max_examples=150, phases=[Phase.explicit, Phase.generate])


def nested(depth):
    tree = 1
    for place in range(depth):
        tree = [tree] if place % 2 else {"a": tree}
    return tree


@st.composite
def spoiled_texts(draw):
    text = EMBEDDED
    for _ in range(draw(st.integers(1, 4))):
        low = draw(st.integers(0, len(text)))
        high = min(low + draw(st.sampled_from([0, 0, 1, 3, 40, 400])), len(text))
        text = text[:low] + draw(st.sampled_from(PIECES) | st.text(max_size=3)) + text[high:]
    return text


def places(tree):
    """Every container in a tree with each of its keys."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(inner):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def spoiled_trees(draw, whole):
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        where, key = found[draw(st.integers(0, len(found) - 1))]
        if draw(st.booleans()) and isinstance(where, dict):
            where[draw(st.sampled_from(["extends", "x", "name", "", "\0", "k" * 1000]) | st.text(max_size=3))] = draw(
                VALUES
            )
        elif draw(st.integers(0, 3)):
            where[key] = draw(VALUES)
        else:
            del where[key]
    return tree


def taken_or_refused(call):
    """Nothing but a recipe, or one message."""
    try:
        recipe = call()
    except RecipeError as error:
        message = str(error)
    else:
        message = ""
    assert len(message) < 20_000
    if message:
        return
    # What is taken can be written, read again, and is the same.
    again = recipes.parse(tomllib.loads(recipe.to_toml({"torch": "2"})))
    assert again.resolved() == recipe.resolved()


@TAKEN
@given(spoiled_texts())
def test_a_spoiled_recipe_is_taken_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "spoiled.toml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    taken_or_refused(lambda: recipes.load(file))


@TAKEN
@given(spoiled_trees(TREE))
def test_a_spoiled_tree_is_taken_or_refused(tree):
    taken_or_refused(lambda: recipes.parse(tree))


@TAKEN
@given(
    st.sampled_from(KEYS),
    st.sampled_from(PIECES) | st.text(max_size=5) | VALUES.map(str),
    st.sampled_from(["=", "", " = ", "\n=", "=\n"]),
)
def test_a_spoiled_override_is_taken_or_refused(key, value, equals):
    taken_or_refused(lambda: recipes.load(None, [key + equals + value]))


@TAKEN
@given(spoiled_trees({**TREE, "rounds": 1, "compare": COMPARE}))
def test_a_spoiled_comparison_is_taken_or_refused(tmp_path_factory, tree):
    file = tmp_path_factory.getbasetemp() / "compared.toml"
    try:
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    except (ValueError, TypeError, RecursionError):
        return  # TOML cannot say it
    for arguments in ({}, {"chosen": ["half"], "seeds": [0], "rates": [1e-3]}):
        try:
            comparison = plan.load(file, **arguments)
        except RecipeError:
            continue
        assert comparison.count() > 0
        tomllib.loads(comparison.to_toml())


@TAKEN
@given(spoiled_trees({"data": [{"source": "a.jsonl", "columns": {"instruction": "q"}, "limit": 3, "split": "train"}]}))
def test_a_spoiled_site_is_taken_or_refused(tmp_path_factory, tree):
    file = tmp_path_factory.getbasetemp() / "site.toml"
    try:
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    except (ValueError, TypeError, RecursionError):
        return
    try:
        site_of({"client": "a", "data": str(file), "state": "~nobody-of-this-name"})
    except DataError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("piece", PIECES)
def test_a_spoiled_site_file_is_refused(piece, tmp_path):
    file = tmp_path / "site.toml"
    file.write_bytes(f"data = {piece}".encode(errors="surrogatepass"))
    with pytest.raises(DataError, match="site.toml"):
        site_of({"client": "a", "data": str(file)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "more than 32 deep"),
        ("a." * 5000 + "a = 1", "more than 32 deep"),
        (f"rounds = {DIGITS}", "more than 64 bits"),
        ("rounds = 0x" + "f" * 5000, "rounds: an integer of more than 64 bits"),
        ("rounds = 9223372036854775808", "rounds: an integer of more than 64 bits"),
        (r'extends = "a\u0000b"', "extends: a text with a character that no file"),
        ("extends = 'NAME'", "recipe.toml: cannot be read: File name too long".replace("recipe.toml", "x")),
        ("extends = 'loop.toml'", "loop.toml: cannot be read: Too many levels of symbolic links"),
        ("extends = 'recipe.toml'", "no recipe that extends itself"),
        ("extends = '/dev/zero'", "longer than 4 MiB"),
        ("extends = '.'", "cannot be read: Is a directory"),
    ],
)
def test_a_recipe_that_nothing_could_bear(text, message, tmp_path):
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    file = tmp_path / "recipe.toml"
    file.write_text(text.replace("NAME", "x" * 5000))
    with pytest.raises(RecipeError, match=message):
        recipes.load(file)


def test_a_recipe_is_read_to_its_end_or_not_at_all(tmp_path):
    file = tmp_path / "long.toml"
    file.write_text(EMBEDDED + "#" * (toml.LONGEST - len(EMBEDDED.encode())))
    assert recipes.load(file).name == TREE["name"]
    file.write_text(file.read_text() + "#")
    with pytest.raises(RecipeError, match="longer than 4 MiB"):
        recipes.load(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clients.-1.name=x", "has nothing at 'clients.-1.name'"),
        ("clients.1_0.name=x", "has nothing at"),
        ("rounds=3\nseed=5", "rounds = '3 seed=5'|expected a whole number"),
        (f"rounds={DIGITS}", "too many digits"),
        ("rounds=" + "[" * 5000, "nested too deeply"),
        (".".join("a" * 40) + "=1", "40 parts"),
        ("lora.rank=1000000000000", "expected at most 1000000000"),
        ("method.damping=1e308", "method.damping = 1e[+]308: .*expected at most 100"),
        ("model.id=a\ud800", "half a surrogate pair"),
        ("training.steps=1000000", "more than 100000000 sequences a round"),
    ],
)
def test_an_override_that_nothing_could_bear(override, message):
    more = ["training.batch_size=4096"] if "steps" in override else []
    with pytest.raises(RecipeError, match=message):
        recipes.load(None, [override, *more])


def numbers(model, prefix=""):
    """Every number of a section and of those in it: its dotted name, and its bounds."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        kinds += [inner for kind in kinds for inner in get_args(kind)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{prefix}{name}.")
        if {int, float} & {kind for kind in kinds if isinstance(kind, type)}:
            yield prefix + name, [*field.metadata, *(m for kind in kinds for m in _metadata(kind))]


def _metadata(kind):
    for entry in getattr(kind, "__metadata__", ()):
        yield from getattr(entry, "metadata", [entry])


def test_every_number_of_a_recipe_has_an_upper_bound():
    bounded = (annotated_types.Le, annotated_types.Lt)
    found = list(numbers(recipes.Recipe))
    found += [entry for name in methods.names() for entry in numbers(methods.get(name).Options, f"{name}.")]
    assert len(found) > 40
    assert [name for name, limits in found if not any(isinstance(limit, bounded) for limit in limits)] == []


@pytest.mark.parametrize(
    "name", ["meta", "mps:x", "xla", "cuda:-1", "cuda:99999999999", "cuda:999", "cpu:7", "", "\0", "x" * 5000]
)
def test_a_device_that_nobody_has(name):
    with pytest.raises(ModelError, match="model.device = ") as caught:
        pick_device(name)
    assert len(str(caught.value)) < 300


MADE_UP = ({}, {"name": 3}, {"name": "x" * 10**6}, {"name": "fedsrd", "damping": 1e308}, {"name": "fedsrd", "x": 1})


@pytest.mark.parametrize("chosen", MADE_UP)
def test_a_method_that_a_server_made_up(chosen):
    with pytest.raises(RecipeError) as caught:
        setup.method_of(chosen)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "template",
    ["{q.__class__}", "{q[0]}", "{0}", "{}", "{q", "q}", "{q:>9999999999}", "{q!r}", "{q:{q}}", "no field", "{q:d}"],
)
def test_a_template_names_columns_and_nothing_else(template, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"q": "why", "response": "so"}\n')
    assert load_local(str(file), columns={}, template="{q}?")[0].instruction == "why?"
    with pytest.raises(DataError, match="template"):
        load_local(str(file), columns={}, template=template)


@pytest.mark.parametrize("line", ["[" * 10**5, '{"q": ' + DIGITS + "}", '{"q":' * 10**5])
def test_a_row_that_nothing_could_bear(line, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match="line 1"):
        load_local(str(file), columns={}, template=None)


@pytest.mark.parametrize("source", ["~nobody-of-this-name/a.jsonl", "x" * 5000 + ".jsonl", "/" + "x" * 5000])
def test_a_path_that_is_none(source):
    with pytest.raises(DataError, match="no such file|is no usable path"):
        load_local(source, columns={}, template=None)


@pytest.mark.parametrize("speed", ["9" * 400 + "bit", "0." + "0" * 400 + "1bit", "0.5bit", "9" * 10**5, "1e9bit"])
def test_a_speed_that_no_link_has(speed):
    with pytest.raises(RecipeError, match="--up"):
        bits_per_second(speed, "--up")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nraise OSError('gone')\n", r"OSError: gone \(.*plugin.py, line 2\)"),
        ("import json\n\njson.loads('[')\n", r"JSONDecodeError: .*plugin.py, line 3\)"),
        ("x = = 1\n", r"SyntaxError: .*plugin.py, line 1"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*plugin.py, line 2\)"),
        ("def f(): f()\nf()\n", r"RecursionError: .*plugin.py, line 1\)"),
        ("\x00", "null bytes|source code string cannot contain"),
    ],
)
def test_a_plugin_that_is_broken_says_where(code, message, tmp_path):
    file = tmp_path / "plugin.py"
    file.write_text(code)
    with pytest.raises(RecipeError, match=f"--import .*{message}"):
        plugins.load(str(file))


@pytest.mark.parametrize("name", ["", "..x", "x" * 5000 + ".py", "a\0.py", "none.py", "no.such.module", "."])
def test_a_plugin_that_is_not_there(name):
    with pytest.raises(RecipeError, match="--import"):
        plugins.load(name)


@pytest.fixture
def scratch(tmp_path_factory):
    """The temporary folder of `said`."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def said(monkeypatch, capsys, tmp_path, scratch):
    """Runs a command as a process would; gives its exit code and what it wrote to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.delenv(cli.DEBUG, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedsrd", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--out", "file/x"], 2, "--out file/x: Not a directory; choose another folder"),
        (["run", "--out", "x" * 5000], 2, "File name too long; choose another folder"),
        (["run", "--out", "loop/x"], 2, "Too many levels of symbolic links; choose another folder"),
        (["compare", "--methods", "fedavg", "--out", "file/x"], 2, "--out file/x: Not a directory"),
        (["evaluate", "x", "--out", "file/x"], 2, "--out file/x: Not a directory"),
        (["report", "x", "--out", "file/x"], 2, "--out file/x: Not a directory"),
        (["run", "."], 2, "cannot be read: Is a directory"),
        (["run", "x" * 5000], 2, "cannot be read: File name too long"),
        (["run", "loop"], 2, "cannot be read: Too many levels"),
        (["run", "--import", "."], 2, "--import ."),
        (["inspect", "."], 2, "cannot be read: Is a directory"),
        (["inspect", "x" * 5000], 2, "cannot be read: File name too long"),
        (["report", "x" * 5000], 1, "File name too long"),
        (["evaluate", "x" * 5000], 1, "File name too long"),
        (["evaluate", "~nobody-of-this-name/x"], 2, "no such folder"),
        (["plan", "--model", "x/config.json"], 2, "no such file"),
        (["plan", "--model", "/" + "x" * 5000, "--rank", "4"], 2, "there is no such folder"),
    ],
)
def test_paths_that_are_none_end_in_one_message(said, tmp_path, arguments, code, message):
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    found = said(*arguments)
    assert found[0] == code
    assert message in found[1]
    assert found[1].startswith("fedsrd: ")
    assert "Traceback" not in found[1]
    assert "bug" not in found[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_folder_that_cannot_be_made_is_one_message(said, tiny_recipe):
    Path("recipe.toml").write_text(tomli_w.dumps(tiny_recipe))
    code, text = said("run", "recipe.toml", "--quiet", "--out", "/proc/fedsrd/run")
    assert (code, text.count("\n")) == (1, 1) or (code, text.count("\n")) == (2, 1)
    assert text.startswith("fedsrd: ")
    assert "/proc/fedsrd" in text


def test_an_absurd_rank_is_compared_with_the_model_first(said, tiny_recipe):
    Path("recipe.toml").write_text(tomli_w.dumps(tiny_recipe))
    code, text = said("run", "recipe.toml", "--quiet", "--set", "lora.rank=1000000000", "--out", "run")
    assert code == 2
    assert "lora.rank = 1000000000: larger than layer" in text
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"hidden_size": None},
        {"hidden_size": -3},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 1e308},
        {"vocab_size": [1]},
        {"hidden_act": "\x1b[2J"},
        {"architectures": 3, "model_type": {}},
        {"rope_parameters": "x"},
    ],
)
def test_a_models_config_of_anybodys_is_one_message(change, tiny_model, tmp_path, said):
    config = {**json.loads((tiny_model / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, text = said("plan", "--model", tmp_path / "config.json", "--rank", "4", "--method", "fedavg")
    assert code == 2
    assert text.startswith("fedsrd: ")
    assert "\x1b" not in text
    assert "config.json" in text


def test_a_nested_config_is_one_message(tmp_path, said):
    (tmp_path / "config.json").write_text('{"a":' * 10**5)
    assert said("plan", "--model", tmp_path / "config.json")[0] == 2


def test_a_bug_is_one_line_and_its_traceback_a_file(said, monkeypatch, scratch):
    def broken(*_):
        raise RuntimeError("\x1b[2Jthe moon\nis full")

    monkeypatch.setattr(recipes, "load", broken)
    code, text = said("run")
    assert code == 1
    assert text.startswith("fedsrd: RuntimeError: �[2Jthe moon is full\nThis is a bug in fedsrd")
    (file,) = scratch.glob("fedsrd-error-*.txt")
    assert str(file) in text
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(cli.DEBUG, "1")
    monkeypatch.setattr(sys, "argv", ["fedsrd", "run"])
    with pytest.raises(RuntimeError, match="the moon"):
        cli.main()


def test_an_interrupt_is_no_bug(said, monkeypatch, scratch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "load", stopped)
    assert "bug" not in said("run")[1]
    assert not list(scratch.glob("fedsrd-error-*"))


def test_our_errors_are_no_bugs(said, scratch):
    assert said("run", "none.toml")[0] == FedSRDError.exit_code + 1
    assert not list(scratch.glob("fedsrd-error-*"))

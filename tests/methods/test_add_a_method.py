"""docs/add-a-method.md, executed as it is written."""

import re
import sys
from pathlib import Path

import pytest
import tomli_w
from toy import Federation, apart, build
from typer.testing import CliRunner

from fedsrd import methods, plugins
from fedsrd.cli import app
from fedsrd.errors import RecipeError
from fedsrd.methods import method as registry

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def file(tmp_path):
    code = re.search(r'```python title="random_k.py"\n(.*?)```', PAGE, re.S).group(1)
    assert len(code.splitlines()) < 150
    path = tmp_path / "random_k.py"
    path.write_text(code, encoding="utf-8")
    yield path
    registry._REGISTRY.pop("random-k", None)
    sys.modules.pop("fedsrd_plugin_random_k", None)


def test_the_method_of_the_page_does_what_every_method_does(file):
    plugins.load(str(file))
    plugins.load(str(file))
    assert "random-k" in methods.names()
    whole, broken = Federation(build("random-k")).rounds(3), Federation(build("random-k")).rounds(3)
    assert apart(whole.weights(), broken.weights()) == 0
    closed = whole.round()
    sent = sum(closed.uplinks[0].values()) / sum(
        2 * 4 * (rows + columns) / 2 for rows, columns in ((24, 16), (6, 16), (16, 24))
    )
    assert 0.03 < sent < 0.25
    # What was not sent is remembered: nothing that was learnt is lost.
    assert whole.clients[0].memory


def test_the_command_of_the_page_runs(file, tiny_recipe, tmp_path, monkeypatch):
    command = re.search(r"```bash[^\n]*\nfedsrd (compare --import .*?)\n```", PAGE, re.S).group(1).split()
    monkeypatch.chdir(tmp_path)
    tiny_recipe["rounds"] = 1
    Path("tiny.toml").write_text(tomli_w.dumps(tiny_recipe), encoding="utf-8")
    found = CliRunner().invoke(app, [command[0], "tiny.toml", *command[1:], "--out", "out"])
    assert found.exit_code == 0, found.output
    assert "random-k" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1 +", "SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        plugins.load(str(path))
    with pytest.raises(RecipeError, match="--import no.such.module"):
        plugins.load("no.such.module")

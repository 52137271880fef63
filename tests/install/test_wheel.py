"""The built package as a stranger gets it: installed from the wheel, used in an empty folder, away from the repository.

Its dependencies are those of the environment that runs the tests; `make test-install` installs them anew as well.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with a wheel and an sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def fedsrd(built, tmp_path_factory):
    """Runs the installed command line in an empty folder; gives exit code, standard output and standard error."""
    place = tmp_path_factory.mktemp("site")
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # After the wheel's own files, so that these win over an editable install. Only paths: nothing of it is executed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    (folder := tmp_path_factory.mktemp("empty")).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*words):
        command = [str(place / "bin" / "python"), "-m", "fedsrd.cli", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("fedsrd ")
    where = subprocess.run(
        [str(place / "bin" / "python"), "-c", "import fedsrd; print(fedsrd.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(place) in where
    return run


def test_the_wheel_has_all_that_it_needs_and_no_tests(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "fedsrd").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert not [name for name in names if not name.startswith("fedsrd")]


def test_the_sdist_gives_the_same_wheel(built, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(unpacked)]
    subprocess.run(command, capture_output=True, check=True)
    (again,), (wheel,) = tmp_path.glob("*.whl"), built.glob("*.whl")
    content = [
        {name: archive.read(name) for name in archive.namelist()} for archive in map(zipfile.ZipFile, (again, wheel))
    ]
    assert content[0] == content[1]


def test_what_the_index_shows_has_no_link_into_nowhere(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        shown = archive.read(name).decode()
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_recipes_are_listed_shown_copied_and_planned(fedsrd, tmp_path):
    code, out, _ = fedsrd("recipes", "list", "--json")
    assert code == 0
    named = {one["name"]: one for one in json.loads(out)}
    assert {"demo", "embedded", "embedded/main", "models/qwen3-1.7b", "paper/main-llama"} <= named.keys()
    assert all(one["about"] for one in named.values())
    assert named["models/qwen3-1.7b"]["command"] == "run"
    assert named["paper/main-llama"]["command"] == "compare"
    assert fedsrd("recipes", "show", "demo")[1].startswith("# The demo")
    copy = tmp_path / "mine.toml"
    assert fedsrd("recipes", "copy", "models/qwen3-1.7b", str(copy))[0] == 0
    assert "extends" not in copy.read_text(encoding="utf-8")
    before = copy.read_bytes()
    code, _, error = fedsrd("recipes", "copy", "models/qwen3-1.7b", str(copy))
    assert code == 2
    assert "is there already" in error
    assert copy.read_bytes() == before


def test_a_name_that_no_recipe_has_is_told(fedsrd):
    code, _, error = fedsrd("recipes", "show", "models/qwen3-1.7")
    assert code == 2
    assert "did you mean models/qwen3-1.7b?" in error
    code, _, error = fedsrd("run", "recipes/models/nothing.toml")
    assert code == 2
    assert "no such file, nor a recipe that comes with fedsrd" in error


def test_every_recipe_stands_alone_when_it_is_copied(tmp_path, monkeypatch):
    from fedsrd import shipped
    from fedsrd.cli.recipes import _whole
    from fedsrd.compare import plan
    from fedsrd.recipe import load

    monkeypatch.chdir(tmp_path)
    for one in shipped.described():
        Path("copy.toml").write_text(_whole(one.name), encoding="utf-8")
        if one.command == "compare":
            assert plan.load(Path("copy.toml")).variants == plan.load(Path(one.name)).variants
        else:
            assert load(Path("copy.toml")).resolved() == load(Path(one.name)).resolved()

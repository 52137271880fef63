"""The folder's lock: one process at a time, and none for ever."""

import os
import signal
import subprocess
import sys

import pytest

from fedsrd.errors import RunFolderError
from fedsrd.runs.folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from fedsrd.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
assert folder.try_lock()
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_that_another_process_has_is_refused_until_that_is_killed(tmp_path):
    path = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert other.stdout.readline() == "held\n"
        folder = RunFolder(path)
        assert not folder.try_lock()
        with pytest.raises(RunFolderError, match="another process is running in this folder"), folder.locked():
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with folder.locked():
        assert not RunFolder(path).try_lock()
    assert RunFolder(path).try_lock()


def test_whoever_has_the_folder_keeps_it_inside(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.try_lock()
    with folder.locked():
        pass
    assert not RunFolder(tmp_path).try_lock()
    folder.unlock()
    assert RunFolder(tmp_path).try_lock()
    folder.unlock()


def test_a_run_that_was_not_begun_has_no_records_and_no_summary(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.records() == []
    with pytest.raises(RunFolderError, match="not complete, so it has no summary"):
        folder.summary()


@pytest.mark.parametrize(
    "left",
    [
        [],
        [".lock"],
        [".lock", "state/"],
        [".lock", "state/.fedsrd-0123.tmp", ".fedsrd-4567.tmp"],
        [".lock", "log.jsonl", "tensorboard/events"],
    ],
)
def test_what_a_run_leaves_that_was_killed_before_its_recipe_is_new(tmp_path, left):
    plant(tmp_path, left)
    folder = RunFolder(tmp_path)
    folder.check_new()
    with folder.locked():
        folder.check_new()
        assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (["thesis.txt"], "not an empty folder"),
        ([".lock", "thesis.txt"], "not an empty folder"),
        (["log.jsonl"], "not an empty folder"),
        (["notes.tmp"], "not an empty folder"),
        ([".lock", "state/thesis.txt"], "not an empty folder"),
        (["state/global.safetensors"], "holds a run already"),
        (["rounds.jsonl"], "holds a run already"),
        (["recipe.toml"], "holds a run already"),
    ],
)
def test_what_is_somebodys_is_not(tmp_path, left, says):
    plant(tmp_path, left)
    with pytest.raises(RunFolderError, match=says):
        RunFolder(tmp_path).check_new()


def test_links_are_nothing_that_a_run_leaves(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in (".lock", "state"):
        folder = tmp_path / f"run{name}"
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunFolderError, match="not an empty folder"):
            RunFolder(folder).check_new()


def test_a_folder_that_cannot_be_made_is_our_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be used.*choose another --out"):
        RunFolder(tmp_path / "file" / "run").try_lock()


def plant(folder, names):
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")

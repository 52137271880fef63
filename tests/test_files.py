"""Files that appear whole, in folders where somebody has planted links; and scratch folders that a kill leaves."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd import files
from fedsrd.errors import EvaluationError, FederationError
from fedsrd.evaluation.answers import Answers
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import NOTHING
from fedsrd.federation.remote import replica as replicas
from fedsrd.federation.remote.log import Log
from fedsrd.federation.remote.replica import Replica

HOLD = """
import sys, time
from pathlib import Path
from fedsrd.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "private.arrow").write_text("private")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim"
    file.write_text("mine")
    return file


def test_the_temporary_name_cannot_be_guessed_and_links_are_replaced(tmp_path, victim, monkeypatch):
    target = tmp_path / "folder" / "file"
    target.parent.mkdir()
    for name in ("file", "file.tmp", ".file.tmp"):
        (target.parent / name).symlink_to(victim)
    used, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, to: (used.append(source.name), replace(source, to)))
    files.write_atomically(target, b"new")
    files.write_atomically(target, b"newer")
    assert victim.read_text() == "mine"
    assert target.read_bytes() == b"newer"
    assert not target.is_symlink()
    assert len(set(used)) == 2
    assert all(files.is_temporary(name) and len(name) > 32 for name in used)


def test_a_link_at_the_temporary_name_itself_is_refused(tmp_path, victim, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".fedsrd-guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "file", b"new")
    assert victim.read_text() == "mine"


@given(mode=st.integers(0, 0o777).map(lambda bits: bits | 0o400))
def test_a_file_keeps_its_permissions(tmp_path_factory, mode):
    file = tmp_path_factory.mktemp("mode") / "file"
    file.write_bytes(b"old")
    file.chmod(mode)
    files.write_atomically(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_what_is_swept_is_ours_alone(tmp_path, victim):
    below = tmp_path / "below"
    below.mkdir()
    ours = [below / ".fedsrd-0.tmp", tmp_path / ".fedsrd-1.tmp", tmp_path / ".fedsrd-2.tmp"]
    for file in ours[:2]:
        file.write_text("x")
    ours[2].symlink_to(victim)
    theirs = [below / "notes.tmp", tmp_path / ".fedsrd-notes"]
    for file in theirs:
        file.write_text("x")
    files.sweep(tmp_path, age=3600)
    assert all(os.path.lexists(file) for file in ours)
    files.sweep(tmp_path)
    assert not any(os.path.lexists(file) for file in ours)
    assert all(file.is_file() for file in (*theirs, victim))


@pytest.mark.parametrize("plant", [os.symlink, lambda target, path: os.mkfifo(path), lambda target, path: path.mkdir()])
def test_nothing_is_appended_through_what_is_no_file(tmp_path, victim, plant):
    for name, write, error in (
        ("log.jsonl", lambda path: Log(path).write("event"), FederationError),
        ("answers.jsonl", lambda path: Answers(path).put("key", ["a"]), EvaluationError),
    ):
        path = tmp_path / name
        plant(victim, path)
        with pytest.raises(error, match=f"{name} cannot be written"):
            write(path)
    assert victim.read_text() == "mine"


@given(cut=st.integers(1, 60))
def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    Answers(path).put("one", ["première réponse"])
    first = path.stat().st_size
    Answers(path).put("two", ["deuxième réponse, coupée"])
    path.write_bytes(path.read_bytes()[: max(first, path.stat().st_size - cut)])
    Answers(path).put("three", ["troisième"])
    found = Answers(path)
    assert found.get("one", 1) == ["première réponse"]
    assert found.get("three", 1) == ["troisième"]
    assert found.get("two", 1) in (None, ["deuxième réponse, coupée"])


def test_a_scratch_folder_is_private_and_gone_afterwards(tmp_path):
    with files.scratch_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with files.scratch_folder(tmp_path) as other:
            assert other != folder
            assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, victim):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    folder = tmp_path / os.path.basename(other.stdout.readline().strip())
    link = tmp_path / "fedsrd-scratch-link"
    link.symlink_to(victim)
    try:
        with files.scratch_folder(tmp_path):
            # It is alive, and needs it.
            assert (folder / "private.arrow").is_file()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert (folder / "private.arrow").is_file()
    with files.scratch_folder(tmp_path):
        assert not folder.exists()
    assert victim.read_text() == "mine"


class Holder:
    """What a replica saves and loads."""

    def __init__(self):
        from fedsrd.federation.client import ClientMemory

        self.state, self.memory = NOTHING, ClientMemory({})

    def restore(self, state, memory=None):
        self.state, self.memory = state, memory or self.memory


def full(path, content):
    raise OSError(28, "No space left on device")


def test_a_replica_is_private_and_follows_no_link(tmp_path, victim, monkeypatch):
    replica = Replica(tmp_path / "state", "0123456789abcdef", "ward")
    replica.folder.mkdir(parents=True)
    (replica.folder / "replica.safetensors.tmp").symlink_to(victim)
    (replica.folder / "replica.safetensors").symlink_to(victim)
    (replica.folder / ".fedsrd-half.tmp").write_text("half")
    with replica.locked():
        replica.save(Holder())
    assert victim.read_text() == "mine"
    assert sorted(file.name for file in replica.folder.iterdir()) == [
        ".lock",
        "replica.safetensors",
        "replica.safetensors.tmp",
    ]
    (replica.folder / ".lock").unlink()
    (replica.folder / ".lock").symlink_to(victim)
    with pytest.raises(FederationError, match="kept: 0123456789abcdef/ward/.lock is a symbolic link"), replica.locked():
        pass
    other = Replica(tmp_path / "state", "0123456789abcdef", "lab")
    other.folder.symlink_to(tmp_path)
    with pytest.raises(FederationError, match="kept: 0123456789abcdef/lab is a symbolic link"), other.locked():
        pass
    fresh = Replica(tmp_path / "state", "fedcba9876543210", "ward")
    with fresh.locked():
        assert stat.S_IMODE(fresh.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(fresh.folder.parent.stat().st_mode) == 0o700
        monkeypatch.setattr(replicas, "write_atomically", full)
        with pytest.raises(FederationError, match="state cannot be written: .*No space left"):
            fresh.save(Holder())
    assert victim.read_text() == "mine"


def test_a_damaged_replica_is_told_of_once_and_kept_aside(tmp_path):
    replica = Replica(tmp_path, "0123456789abcdef", "ward")
    with replica.locked():
        replica.save(Holder())
        file = replica.folder / "replica.safetensors"
        damaged = file.read_bytes()[:-1] + b"?"
        file.write_bytes(damaged)
        assert replica.state().version == -1
        # Who only asks for its version leaves it for who is to tell of it.
        said = replica.load(Holder())
        assert said.startswith("0123456789abcdef/ward/replica.safetensors is damaged, the server sends")
        assert "what the method kept here is lost" in said
        assert replica.load(Holder()) is None
        assert (replica.folder / "replica.damaged").read_bytes() == damaged
        assert '"damaged"' in (replica.folder / "log.jsonl").read_text()
        replica.save(Holder())
        assert Checkpoint.load(file, "").state.version == -1

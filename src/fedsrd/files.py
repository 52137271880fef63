"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file's content as a whole: a temporary file beside it, flushed to the disk, then renamed."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        with scratch.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename. Not every system can open a folder.
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

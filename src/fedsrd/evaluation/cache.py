"""Base models' results, kept from one evaluation to the next under a name for everything that they follow from."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsrd.errors import EvaluationError
from fedsrd.files import ABANDONED, sweep, write_atomically
from fedsrd.packages import cache_dir, file_sha256
from fedsrd.training import loading


def key(*facts: object) -> str:
    """A name, in hex, for these facts and the versions of the libraries that compute."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return hashlib.sha256(repr((facts, versions)).encode()).hexdigest()


def model_identity(model: str, revision: str | None) -> str:
    """A name for exactly a base model's weights: the hub's commit, or its files' names, sizes and times.

    Reads the config, not the weights. Raises ModelError if there is no such model.
    """
    commit = loading.commit_of(model, revision)
    source = loading.source_of(model)
    folder = Path(source)
    if not folder.is_dir():
        return repr((source, commit or revision))
    stats = [(file.name, file.stat()) for file in _weights(folder)]
    return repr((source, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


def adapter_identity(folder: Path) -> str:
    """A name for exactly an adapter's weights: its files' digests."""
    return repr([(file.name, file_sha256(file)) for file in _weights(folder)])


def _weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".model", ".jinja"))


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the cache has under a name of `key`, or what `make()` gives, from now on."""
    path = cache_dir() / "evaluations" / f"{name}.json"
    found = read(path)
    if found is None:
        found = make()
        write(path, found)
    return found


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object, if the file is there and holds one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole.

    Raises:
        EvaluationError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ABANDONED)
        write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror}; what is done so far is kept") from None

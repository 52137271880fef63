"""What the page says of places: a folder's name, never where it lies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsrd.places import Kind, shown, without_folders


def folder_name(path: Path) -> str:
    """The folder's own name.

    >>> folder_name(Path("runs/hospital/"))
    'hospital'
    """
    return path.resolve().name or "run"


def without_places(tree: Any, known: Iterable[str], key: str = "") -> Any:
    """A recipe's or comparison's TOML tree, where models and data that are not surely public have no names.

    Args:
        tree: such as {"model": {"id": "/srv/llama"}}; nothing in it is changed.
        known: ids that are known to be the hub's (`places.is_public`).
        key: of the tree, dotted.
    """
    if isinstance(tree, dict):
        return {name: without_places(value, known, f"{key}.{name}") for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_places(value, known, key) for value in tree]
    kind: Kind | None = "dataset" if key.endswith(".source") else "model" if key.endswith(".model.id") else None
    return shown(tree, kind, known) if kind is not None and isinstance(tree, str) else tree


def texts_without_folders(tree: Any) -> Any:
    """A JSON tree whose texts and keys have no folders (`places.without_folders`)."""
    if isinstance(tree, dict):
        return {without_folders(name): texts_without_folders(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [texts_without_folders(value) for value in tree]
    return without_folders(tree) if isinstance(tree, str) else tree

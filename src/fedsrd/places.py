"""Places on somebody's disk stay with them: which names of models and data may be shown, and texts without folders."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]

LABELS: dict[Kind, str] = {"model": "a local model", "dataset": "private data (a local file)"}
"""What is said instead of a name that is not surely public."""

_EMBEDDED = re.compile(r"embedded:[\w.-]+")
_HUB = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?::[\w.-]+)?")
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".toml", ".arrow", ".txt")
_PLACE = re.compile(
    r"""(?<![\w/\\.~<-])                       # not in the middle of an address, a name or a tag
    (?:file://|[A-Za-z]:|~[\w.-]*|\.{1,2}|\\\\[\w.-]+|)  # C:, ~user, .., \\host, or the root
    (?:[/\\][^\s/\\'"`:;,<>|()\[\]{}]+)+[/\\]?""",
    re.VERBOSE,
)
_RELATIVE = re.compile(rf"(?<![\w:/\\.~-])(?:[\w.-]+[/\\])+([\w.-]+(?:{'|'.join(map(re.escape, _FILES))}))\b")


def is_public(name: str, kind: Kind, known: Iterable[str] = ()) -> bool:
    """Whether a model's or data set's name is surely public: embedded, or an id that was loaded from the hub.

    "data/ward" may be an id or a folder, which may have been moved since; so the hub's cache on this machine must have
    it, or somebody who could look must have said so.

    Args:
        name: a recipe's `model.id` or `source`.
        kind: what it is the name of.
        known: ids that are known to be the hub's.
    """
    if _EMBEDDED.fullmatch(name):
        return True
    found = _HUB.fullmatch(name)
    if found is None or name.lower().endswith(_FILES) or (kind == "model" and ":" in name):
        return False
    return found["id"] in known or (not _exists(name) and _in_cache(found["id"], kind))


def shown(name: str, kind: Kind, known: Iterable[str] = ()) -> str:
    """The name where it is public, else what to say instead. Arguments as `is_public`."""
    return name if is_public(name, kind, known) else LABELS[kind]


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    r"""A text for others: of every path in it, its last part.

    Args:
        text: such as an error's message.
        known: paths that are known to be meant, which may have spaces or look like something else.

    >>> without_folders("left: /home/ann/ward 3/left.jsonl: line 2", ["/home/ann/ward 3/left.jsonl"])
    'left: left.jsonl: line 2'
    >>> without_folders("see https://huggingface.co/org/name; C:\\Users\\ann\\x.csv, ~/notes and wards/x.csv")
    'see https://huggingface.co/org/name; x.csv, notes and x.csv'
    """
    spellings: set[str] = set()
    for path in filter(re.compile(r"[/\\]").search, known):
        # As given, and as a Path writes it. Path.expanduser raises where there is no such user.
        spellings |= {path, str(Path(os.path.expanduser(path)))}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, _last(spelling))
    text = _PLACE.sub(lambda found: _last(found[0]), text)
    return _RELATIVE.sub(lambda found: found[1], text)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return True


def _in_cache(name: str, kind: Kind) -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "--".join([f"{kind}s", *name.split("/")]), "snapshots").is_dir()

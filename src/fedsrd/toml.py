"""TOML of anybody's: read whole or refused with one reason, whatever the bytes are."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsrd.text import foreign

LONGEST = 4 << 20
"""Bytes of a file that are read; what is longer is no recipe."""
DEEPEST = 32
"""Tables and lists in one another; recipes have six."""


def load(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, is no UTF-8, or as `loads`; the message is one line that does not name the file.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(LONGEST + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a ValueError: the path holds a NUL
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > LONGEST:
        raise ValueError(f"is longer than {LONGEST >> 20} MiB")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot be read as UTF-8 text: {error}") from None
    return loads(text)


def loads(text: str) -> dict[str, Any]:
    """What a text in TOML says.

    Raises:
        ValueError: it is not valid, or as `check`.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {foreign(error)}") from None
    except RecursionError:
        raise ValueError(f"not valid TOML: {_DEEP}") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise ValueError(f"not valid TOML: {_WIDE}") from None
    check(tree)
    return tree


def check(tree: Mapping[str, Any]) -> None:
    """Refuses what valid TOML can say and nothing behind it could bear.

    Raises:
        ValueError: tables lie in one another too deeply, an integer has more than 64 bits, or a text holds a NUL or
            half a surrogate pair.
    """
    todo: list[tuple[Any, tuple[str, ...]]] = [(tree, ())]
    while todo:
        value, where = todo.pop()
        problem = _problem(value, len(where))
        if problem:
            raise ValueError(f"{foreign('.'.join(where), 100)}: {problem}" if where else problem)
        if isinstance(value, Mapping):
            todo += [(key, (*where, str(key))) for key in value]
            todo += [(inner, (*where, str(key))) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(inner, (*where, str(place))) for place, inner in enumerate(value)]


_DEEP = f"tables or lists lie in one another more than {DEEPEST} deep"
_WIDE = "an integer of more than 64 bits"


def _problem(value: Any, depth: int) -> str | None:
    if depth > DEEPEST:
        return _DEEP
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return _WIDE
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        return "a text with a character that no file's name and no TOML file can hold (NUL or half a surrogate pair)"
    return None

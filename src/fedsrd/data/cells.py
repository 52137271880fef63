"""Single values of a row: what is text, and why something is no example. Messages name columns, never contents."""

from typing import Any


class UnfitError(Exception):
    """Why a row is no example. Names columns, never contents."""


def text(value: Any, column: str) -> str:
    """A value that is text. Raises UnfitError where it is none, blank, or not to be encoded."""
    if not isinstance(value, str):
        raise UnfitError(f"{column!r} is {kind(value)}; expected text")
    if not value.strip():
        raise UnfitError(f"{column!r} is blank; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnfitError(f"{column!r} has half a character (a lone surrogate); expected text") from None
    return value


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text"}
    kinds |= {list: "a list", dict: "an object"}
    return kinds.get(type(value), f"of type {type(value).__name__}")

"""What is wrong with a table of keys, for people: unknown keys, and what pydantic found."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsrd.errors import RecipeError
from fedsrd.suggest import did_you_mean
from fedsrd.text import foreign


def tables(model: type[BaseModel], tree: Any, prefix: str) -> Iterator[tuple[Mapping[str, Any], list[str], str]]:
    """Every table of the tree that a section describes: its keys, the known ones, and its dotted name."""
    if not isinstance(tree, Mapping):
        return
    yield tree, list(model.model_fields), prefix
    for key, field in model.model_fields.items():
        inner, nested = field.annotation, tree.get(key)
        # The section itself, or the one in "Section | None" or "list[Section]".
        section = next((arg for arg in (inner, *get_args(inner)) if _is_section(arg)), None)
        if section is None:
            continue
        if isinstance(nested, list):
            for index, item in enumerate(nested):
                yield from tables(section, item, f"{prefix}.{key}.{index}".strip("."))
        else:
            yield from tables(section, nested, f"{prefix}.{key}".strip("."))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def refuse_unknown(given: Mapping[str, Any], known: list[str], prefix: str) -> None:
    """Raises RecipeError for a key that is not known, and names the nearest."""
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known, "did you mean {!r}?", cutoff=0.5) or f"known keys: {', '.join(known)}"
            raise RecipeError(f"unknown key {foreign('.'.join(filter(None, (prefix, key))), 100)!r}: {hint}")


def explain(error: ValidationError, prefix: str) -> list[str]:
    """What is wrong with each key, one line each."""
    lines = []
    for problem in error.errors():
        key = foreign((prefix + ".".join(str(part) for part in problem["loc"])).rstrip("."), 100)
        if problem["type"] == "missing":
            lines.append(f"  {key}: missing")
        else:
            given = (
                ""
                if isinstance(problem["input"], dict | list | BaseModel)
                else f" = {foreign(repr(problem['input']), 100)}"
            )
            place = f"{key}{given}: " if key else ""
            lines.append(f"  {place}{in_words(problem)}")
    return lines


_WORDS = {
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "finite_number": "expected a finite number",
    "literal_error": "expected one of {expected}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "expected at most {max_length} characters",
    "too_short": "expected at least {min_length}, got {actual_length}",
    "too_long": "expected at most {max_length}, got {actual_length}",
    "callable_type": "expected a function",
    "extra_forbidden": "nobody knows this key",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "path": "a path",
    "list": "a list",
    "dict": "a table",
    "model": "a table",
    "mapping": "a table",
}


def in_words(problem: Mapping[str, Any]) -> str:
    """What was expected, of one of pydantic's problems; the caller says what was given.

    >>> in_words({"type": "less_than_equal", "ctx": {"le": 1.0}, "msg": "Input should be ..."})
    'expected at most 1'
    """
    kind, context = problem["type"], problem.get("ctx") or {}
    if kind in _WORDS:
        numbers = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
        return _WORDS[kind].format(**numbers)
    first, _, rest = kind.partition("_")
    if first in _KINDS and rest in ("type", "parsing", "from_float", "parsing_size", "attributes_type"):
        return f"expected {_KINDS[first]}"
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")

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
            lines.append(f"  {place}{problem['msg'].removeprefix('Value error, ')}")
    return lines

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
    """What is wrong with each key, one line each: what was given, and what is expected, in TOML's words."""
    found: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors():
        # pydantic names the kinds of a choice between kinds as if they were keys: "targets", "list[str]".
        places = [str(part) for part in problem["loc"] if not (isinstance(part, str) and part.endswith("]"))]
        key = foreign((prefix + ".".join(places)).rstrip("."), 100)
        said = found.setdefault((key, "" if problem["type"] == "missing" else _given(problem["input"])), [])
        if (text := in_words(problem)) not in said:
            said.append(text)
    lines = []
    for (key, given), said in found.items():
        expected = [text.removeprefix(EXPECTED) for text in said if text.startswith(EXPECTED)]
        others = [text for text in said if not text.startswith(EXPECTED)]
        texts = [*others, *([EXPECTED + ", or ".join(expected)] if expected else [])]
        lines.append(f"  {key}{given}: {'; '.join(texts)}" if key else f"  {'; '.join(texts)}")
    return lines


EXPECTED = "expected "
_PLAIN = {
    "missing": "missing",
    "callable_type": "expected a function",
    "extra_forbidden": "unknown key",
    "path_type": "expected a path",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a whole number of fewer digits",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected text",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a table",
    "mapping_type": "expected a table",
    "model_type": "expected a table",
    "model_attributes_type": "expected a table",
    "string_pattern_mismatch": "expected letters, digits, '.', '_' and '-', with a letter or digit first",
}
_WITH = {
    "literal_error": "expected {expected}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "string_too_short": "expected text of at least {min_length} characters",
    "string_too_long": "expected text of at most {max_length} characters",
    "too_short": "expected at least {min_length} entries",
    "too_long": "expected at most {max_length} entries",
}


def in_words(problem: Mapping[str, Any]) -> str:
    """What was expected, of one of a ValidationError's problems; the caller says what was given.

    >>> in_words({"type": "less_than_equal", "ctx": {"le": 1.0}, "msg": "Input should be ..."})
    'expected at most 1'
    """
    kind, facts = problem["type"], problem.get("ctx") or {}
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _WITH:
        numbers = {key: f"{value:g}" if isinstance(value, float) else value for key, value in facts.items()}
        text = _WITH[kind].format(**numbers).replace("at least 1 entries", "at least one entry")
        return text.replace("text of at least 1 characters", "text that is not empty")
    message: str = problem["msg"].removeprefix("Value error, ")
    return message.replace("Input should be ", EXPECTED)


def _given(value: Any) -> str:
    if isinstance(value, dict | list | BaseModel):
        return ""
    if isinstance(value, bool):
        return f" = {str(value).lower()}"
    return f" = {foreign(repr(value), 100)}"

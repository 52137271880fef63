"""The user's own data: files, folders and Hugging Face data sets. Messages name rows and columns, never contents."""

import json
import os
import string
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsrd.data.examples import Example
from fedsrd.errors import DataError
from fedsrd.suggest import did_you_mean

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_ROLES = ("instruction", "input", "response", "messages")


def load_local(
    source: str, *, split: str = "train", columns: Mapping[str, str], template: str | None, limit: int | None = None
) -> list[Example]:
    """Examples of a JSONL, JSON, Parquet or CSV file, a folder of them, a `save_to_disk` folder, or a hub data set.

    Args:
        source: a path, or a Hugging Face id ("org/name", or "org/name:config").
        split: of a hub data set or a folder that has splits; a file has one part only and this is not looked at.
        columns: which columns are "instruction", "input" (optional, appended to the instruction), "response"; or
            "messages" (a list of {"role", "content"}: the last assistant turn is the response). By default their own
            names.
        template: the instruction as a format string over columns, such as "{question} {context}".
        limit: take the first this many.

    Raises:
        DataError: the source is missing, empty, unreadable, not UTF-8, lacks a column, or has a blank response.
    """
    rows, label = _read(source, split)
    _check_columns(list(rows.column_names), columns, template, label)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    if not len(rows):
        raise DataError(f"{label} has no examples; expected at least one")
    return _examples(rows, columns, template, label)


def check_local(source: str, *, split: str = "train", columns: Mapping[str, str], template: str | None) -> int | None:
    """The checks of `load_local` before anything expensive starts: number of examples, or None for a hub data set.

    Raises:
        DataError: as `load_local`, for paths; a hub data set is looked at when it is loaded.
    """
    _known_roles(columns, template, source)
    if _path(source) is None:
        return None
    return len(load_local(source, split=split, columns=columns, template=template))


def _path(source: str) -> Path | None:
    # Neither raises, whatever the text is: Path's own do.
    path = Path(os.path.expanduser(source))
    starts = ("/", "./", "../", "~", ".\\")
    looks_local = path.suffix in _BUILDERS or source.startswith(starts) or os.path.exists(path)
    return path if looks_local else None


def _read(source: str, split: str) -> tuple[Any, str]:
    path = _path(source)
    if path is None:
        return _from_hub(source, split), f"data set {source!r}"
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _from_folder(path, split), str(path)
    return _from_file(path), str(path)


def _from_file(path: Path) -> Any:
    if path.suffix not in _BUILDERS:
        raise DataError(f"{path}: expected a file ending in {', '.join(_BUILDERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one example")
    if path.suffix != ".parquet":
        _check_text(path)
    return _load(_BUILDERS[path.suffix], f"{path}", data_files=str(path), split="train")


def _from_folder(path: Path, split: str) -> Any:
    from datasets import Dataset, DatasetDict, load_from_disk

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        try:
            found = load_from_disk(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a readable save_to_disk folder: {_reason(error)}") from None
        if isinstance(found, Dataset):
            return found
        assert isinstance(found, DatasetDict)
        if split not in found:
            raise DataError(f"{path} has no split {split!r}; it has {', '.join(found)}")
        return found[split]
    files = sorted(file for file in path.iterdir() if file.suffix in _BUILDERS)
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1:
        kinds = ", ".join(sorted(suffixes)) or "none"
        raise DataError(f"{path}: expected files of one kind ({', '.join(_BUILDERS)}); found {kinds}")
    for file in files:
        if file.suffix != ".parquet":
            _check_text(file)
    return _load(_BUILDERS[suffixes.pop()], str(path), data_files=[str(file) for file in files], split="train")


def _from_hub(source: str, split: str) -> Any:
    name, _, config = source.partition(":")
    return _load(name, f"data set {source!r}", config or None, split=split)


def _load(builder: str, label: str, config: str | None = None, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if "data_files" not in options:
            return datasets.load_dataset(builder, config, **options)
        # `datasets` converts files into a cache; of private data no copy may stay behind.
        with tempfile.TemporaryDirectory() as scratch:
            return datasets.load_dataset(builder, config, cache_dir=scratch, keep_in_memory=True, **options)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        hub = "data_files" not in options
        advice = "; check the id, its config and split, and the network, or name a local file" if hub else ""
        raise DataError(f"{label} cannot be loaded: {_reason(error)}{advice}") from None


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _check_text(path: Path) -> None:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: line {number}, byte {error.start + 1}; save it as UTF-8"
                ) from None
            if path.suffix == ".jsonl" and text.strip():
                _check_json(path, number, text)


def _check_json(path: Path, number: int, text: str) -> None:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number} is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):
        raise DataError(f"{path}: line {number} is nested too deeply, or holds a number of too many digits") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} is not a JSON object ({{...}})")


def _known_roles(columns: Mapping[str, str], template: str | None, label: str) -> None:
    for role in columns:
        if role not in _ROLES:
            raise DataError(f"{label}: columns.{role}: expected one of {', '.join(_ROLES)}")
    if template is not None:
        _fields(template, label)


def _fields(template: str, label: str) -> list[str]:
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DataError(f"{label}: template {template!r}: {error}") from None
    found = [str(field) for _, field, _, _ in parts]
    # No attributes, and no formats: {a:9999999999} would fill the memory with blanks.
    plain = all(field.isidentifier() and not spec and not how for _, field, spec, how in parts if field is not None)
    if not found or not plain:
        raise DataError(f'{label}: template {template!r}: expected column names in braces, such as "{{question}}"')
    return found


def _check_columns(existing: list[str], columns: Mapping[str, str], template: str | None, label: str) -> None:
    _known_roles(columns, template, label)
    if "messages" in columns:
        wanted = [columns["messages"]]
    else:
        wanted = _fields(template, label) if template else [columns.get("instruction", "instruction")]
        wanted.append(columns.get("response", "response"))
        if "input" in columns:
            wanted.append(columns["input"])
    for column in wanted:
        if column not in existing:
            hint = did_you_mean(column, existing, " (did you mean {!r}?)")
            raise DataError(
                f"{label} has no column {column!r}{hint}; it has {', '.join(existing)}. "
                'Name columns with columns = {instruction = "...", response = "..."}'
            )


def _examples(rows: Iterable[Any], columns: Mapping[str, str], template: str | None, label: str) -> list[Example]:
    found, bad = [], []
    for number, row in enumerate(rows, 1):
        example = _from_messages(row[columns["messages"]]) if "messages" in columns else _plain(row, columns, template)
        if example is None:
            bad.append(number)
        else:
            found.append(example)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise DataError(f"{label}: {len(bad)} rows have no text as instruction or response (rows {shown}); mend them")
    return found


def _plain(row: Mapping[str, Any], columns: Mapping[str, str], template: str | None) -> Example | None:
    response = row[columns.get("response", "response")]
    if template:
        instruction = template.format(**{key: "" if value is None else value for key, value in row.items()})
    else:
        instruction = row[columns.get("instruction", "instruction")]
    more = row.get(columns.get("input", "input"))
    if not _is_text(response) or not _is_text(instruction):
        return None
    return Example(f"{instruction}\n\n{more}" if _is_text(more) and not template else instruction, response)


def _from_messages(turns: Any) -> Example | None:
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and _is_text(turn.get("content")) for turn in turns
    ):
        return None
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "assistant"), default=0)
    if last == 0:
        return None
    before = turns[:last]
    text = before[0]["content"] if last == 1 else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in before)
    return Example(text, turns[last]["content"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())

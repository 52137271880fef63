"""Rows of data files, one after the other, each with its place. Nothing is guessed: what does not fit is an error.

Files are read where they lie: no copy of them is made, and no name is a pattern. Messages name files, lines and
columns, never contents.
"""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsrd.errors import DataError
from fedsrd.suggest import did_you_mean

_BLANK = " \t\r\n"
_SHOWN = 20
"""Names of columns in a message."""
_NAME = re.compile(r"\w[\w ;|.:/-]{0,39}")
"""What looks like the name of a column, or like several with another mark between them than a comma."""
_LONGEST_FIELD = 1 << 30
"""Characters of one CSV field. The csv module's own bound, 131,072, is less than a long document has."""
_BATCH = 256
"""Rows of a Parquet file in memory at a time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        values: by column.
        file: that it stands in.
        unit: of `number`, "line" or "row".
        number: where it begins, from 1.
    """

    values: Mapping[str, Any]
    file: str
    unit: str
    number: int

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.file}: {self.unit} {self.number}"


def read_file(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one file, by its suffix (`READERS`).

    Args:
        path: of a regular file; a name such as "a*.jsonl" is a name.
        needed: columns that every row must have.
        optional: columns that are wanted where they are there; others may be left out of the rows.

    Raises:
        DataError: the file is empty, unreadable or not UTF-8, or a row does not fit; the message has file and line.
    """
    number = 0
    try:
        if not path.is_file():
            raise DataError(f"{path}: not a regular file")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected at least one example")
        for row in READERS[path.suffix.lower()](path, needed, optional):
            number += 1
            yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or reason_of(error)}") from None
    if not number:
        raise DataError(f"{path} has no examples; expected at least one")


def check_columns(where: str, needed: Sequence[str], existing: Sequence[str]) -> None:
    """Raises DataError if a column is missing, or if two have one name, so that nobody knows which is meant."""
    for column in needed:
        if column not in existing:
            hint = did_you_mean(column, existing, " (did you mean {!r}?)")
            raise DataError(
                f"{where} has no column {column!r}{hint}; it has {_listed(existing)}. "
                'Name columns with columns = {instruction = "...", response = "..."}'
            )
    if len(set(existing)) < len(existing):
        # Columns without a name cannot be asked for, so that several do no harm.
        twice = next((name for place, name in enumerate(existing) if name and name in existing[:place]), None)
        if twice is not None:
            raise DataError(f"{where} has two columns called {twice!r}; give each a name of its own")


def _listed(columns: Sequence[str]) -> str:
    # A file without a header has its first row in the header's place, and that is somebody's data.
    if not all(_NAME.fullmatch(name) for name in columns if name):
        return f"{len(columns)} whose names do not look like names (has the file a header?)"
    return (", ".join(columns[:_SHOWN]) or "none") + (", ..." if len(columns) > _SHOWN else "")


def reason_of(error: BaseException) -> str:
    """An error's first line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _jsonl(path: Path, needed: Sequence[str], _: Sequence[str]) -> Iterator[Row]:
    for number, text in _lines(path):
        if text.strip(_BLANK):
            with _json_errors(path, number):
                value = _DECODER.decode(text)
            yield _object(value, path, number, needed)


def _json(path: Path, needed: Sequence[str], _: Sequence[str]) -> Iterator[Row]:
    """One list of objects, or objects one after the other, however they are broken into lines."""
    text = "".join(line for _, line in _lines(path))
    place = _after_blanks(text, 0)
    listed = text.startswith("[", place)
    place += listed
    line, counted = 1, 0
    while (begin := _after_blanks(text, place)) < len(text):
        line, counted = line + text.count("\n", counted, begin), begin
        if listed and text[begin] == "]":
            if _after_blanks(text, begin + 1) < len(text):
                raise DataError(f"{path}: line {line}: something follows the list; expected one list of objects")
            return
        with _json_errors(path):
            value, place = _DECODER.raw_decode(text, begin)
        yield _object(value, path, line, needed)
        if listed:
            place = _after_blanks(text, place)
            if text.startswith(",", place):
                place += 1
            elif not text.startswith("]", place):
                break
    if listed:
        raise DataError(f"{path}: the list ends, or lacks a comma, after the object of line {line}; is the file whole?")


def _csv(path: Path, needed: Sequence[str], _: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    rows = csv.reader((text for _, text in _lines(path)), strict=True)
    header: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{path}: line {number}: {_csv_reason(error)}") from None
        if fields is None:
            return
        if not header:
            # Empty lines have no fields.
            header = fields
            if header:
                check_columns(str(path), needed, header)
        elif len(fields) == len(header):
            yield Row(dict(zip(header, fields, strict=True)), str(path), "line", number)
        elif fields:
            raise DataError(
                f"{path}: line {number} has {len(fields)} fields, the header has {len(header)}: separate fields by "
                "commas, and put a text with commas, quotation marks or line ends into quotation marks"
            )


def _csv_reason(error: csv.Error) -> str:
    text = str(error)
    if "end of data" in text:
        return "a quotation mark is opened in this row and never closed"
    if "new-line" in text:
        return "a carriage return outside of quotation marks; save the file with line feeds as line ends"
    return f"not CSV: {text}; write a quotation mark inside of quotation marks twice"


def _parquet(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            existing = file.schema_arrow.names
            check_columns(str(path), needed, existing)
            columns = [name for name in existing if name in (*needed, *optional)]
            for batch in file.iter_batches(_BATCH, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, str(path), "row", number)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(f"{path} cannot be loaded: row {number + 1} or later: {reason_of(error)}") from None


READERS: dict[str, Callable[[Path, Sequence[str], Sequence[str]], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
"""By suffix, in lower case."""


def columns_of(path: Path) -> list[str]:
    """The columns of a Parquet file, whose reader takes only those that are named; none of others.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix.lower() != ".parquet":
        return []
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(path).names)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be loaded: {reason_of(error)}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """A text file's lines with their ends, from 1; without the mark that some programs begin a file with.

    Raises:
        DataError: it is not UTF-8, or has a NUL byte.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: line {number}, byte {error.start + 1}; save it as UTF-8"
                ) from None
            if "\0" in text:
                raise DataError(f"{path}: line {number} has a NUL byte; is it a text file, saved as UTF-8, and whole?")
            yield number, text


def _object(value: Any, path: Path, number: int, needed: Sequence[str]) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {number} is not a JSON object ({{...}})")
    check_columns(f"{path}: line {number}", needed, list(value))
    return Row(value, str(path), "line", number)


def _after_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in _BLANK:
        place += 1
    return place


@contextlib.contextmanager
def _json_errors(path: Path, number: int | None = None) -> Iterator[None]:
    """`number` of the line, where the text is one line of the file."""
    try:
        yield
    except json.JSONDecodeError as error:
        line = number or error.lineno
        raise DataError(f"{path}: line {line} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        where = f"{path}: line {number}" if number else f"{path}"
        reason = "too deeply nested" if isinstance(error, RecursionError) else reason_of(error)
        raise DataError(f"{where} is not JSON that can be read: {reason}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Python's reader would take the last one, others the first.
        raise ValueError("an object has one key twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)

"""The user's own data: files, folders and Hugging Face data sets. Messages name rows and columns, never contents."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fedsrd import hub
from fedsrd.data.cells import UnfitError
from fedsrd.data.examples import Example
from fedsrd.data.readers import READERS, Row, check_columns, columns_of, read_file, reason_of
from fedsrd.data.rows import Form
from fedsrd.errors import DataError

_BESIDE = ("", ".md", ".txt")
"""Suffixes of what may lie beside data in a folder: README, LICENSE, notes."""
_NAMED = 5
"""Rows in a message."""


def load_local(
    source: str, *, split: str = "train", columns: Mapping[str, str], template: str | None, limit: int | None = None
) -> list[Example]:
    """Examples of a JSONL, JSON, Parquet or CSV file, a folder of them, a `save_to_disk` folder, or a hub data set.

    Args:
        source: a path, or a Hugging Face id ("org/name", or "org/name:config").
        split: of a hub data set or a folder that has splits; a file has no parts, and only "train" stands for it.
        columns: as `rows.Form`.
        template: as `rows.Form`.
        limit: take the first this many.

    Raises:
        DataError: the source is missing, empty, unreadable, not UTF-8, or a row does not fit: it has more or fewer
            fields than the header, lacks a column, or has no text where text is expected. The message names the row.
    """
    return list(islice(_examples(source, split, Form(columns, template)), limit))


def check_local(source: str, *, split: str = "train", columns: Mapping[str, str], template: str | None) -> int | None:
    """The checks of `load_local` before anything expensive starts: number of examples, or None for a hub data set.

    Raises:
        DataError: as `load_local`, for paths; a hub data set is looked at when it is loaded.
    """
    form = Form(columns, template)
    form.check(source)
    if _path(source) is None:
        return None
    return sum(1 for _ in _examples(source, split, form))


def _examples(source: str, split: str, form: Form) -> Iterator[Example]:
    form.check(source)
    form = _recognised(source, split, form)
    unfit: list[Row] = []
    first = ""
    for row in _rows(source, split, form):
        try:
            examples = form.examples(row.values)
        except UnfitError as error:
            # All of them are looked at, so that they can be mended at once.
            first = first or f"{row.place}: {error}"
            unfit.append(row)
            continue
        if not unfit:
            yield from examples
    if unfit:
        raise DataError(f"{first}{_count(unfit)}")


def _recognised(source: str, split: str, form: Form) -> Form:
    if form.columns or form.template is not None:
        return form
    try:
        return form.fitting(list(first_row(source, split)))
    except DataError:  # reading it whole says what is wrong, with more to go by
        return form


def _count(unfit: Sequence[Row]) -> str:
    if len(unfit) == 1:
        return ""
    file, unit = unfit[0].file, unfit[0].unit
    numbers = ", ".join(str(row.number) for row in unfit[:_NAMED] if row.file == file)
    return f". {len(unfit)} rows do not fit ({unit}s {numbers}{', ...' if len(unfit) > _NAMED else ''})"


def _path(source: str) -> Path | None:
    """The place on the disk that a source names; None for a hub data set."""
    try:
        path = Path(source).expanduser()
        local = path.exists() or path.suffix.lower() in READERS or source.startswith(("/", "./", "../", "~", ".\\"))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{source[:300]!r} is no usable path: {getattr(error, 'strerror', None) or error}") from None
    return path if local else None


def _rows(source: str, split: str, form: Form) -> Iterator[Row]:
    path = _path(source)
    if path is None:
        yield from _of_table(_from_hub(source, split), form, f"data set {source!r}")
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _of_table(_from_disk(path, split), form, str(path))
    else:
        _refuse_split(path, split)
        for file in _files(path):
            yield from read_file(file, form.needed, form.optional)


def _refuse_split(path: Path, split: str) -> None:
    """Files have no parts. Raises DataError for another than "train", which stands for all of them."""
    if split != "train":
        raise DataError(
            f"split = {split[:80]!r}: {path} has no splits, so that it would be read whole; name the file of that "
            "part, a folder that `save_to_disk` wrote, or leave split out"
        )


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder by name. What would be passed over without a word is an error."""
    if not path.is_dir():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: expected a file ending in {', '.join(READERS)}{_unpack(path)}")
        return [path]
    try:
        shown = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    files = [file for file in shown if file.is_dir() or file.suffix.lower() not in _BESIDE]
    for file in files:
        if file.is_dir():
            raise DataError(f"{file} is a folder in a folder of data; name the one that holds the files")
        if file.suffix.lower() not in READERS:
            raise DataError(
                f"{file}: cannot be read, and would be left out; expected files ending in {', '.join(READERS)} in a "
                f"folder of data, and nothing else but notes (.md, .txt){_unpack(file)}"
            )
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        raise DataError(
            f"{path}: expected files of one kind ({', '.join(READERS)}); found {', '.join(kinds) or 'none'}"
        )
    return files


def _unpack(path: Path) -> str:
    return "; unpack it first" if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip") else ""


def _of_table(table: Any, form: Form, label: str) -> Iterator[Row]:
    """The rows of a `datasets` table."""
    existing = list(table.column_names)
    check_columns(label, form.needed, existing)
    if not len(table):
        raise DataError(f"{label} has no examples; expected at least one")
    # Whatever was set when it was saved: plain values, not tensors.
    plain = table.with_format(None).select_columns(
        [name for name in existing if name in (*form.needed, *form.optional)]
    )
    for number, values in enumerate(plain, 1):
        yield Row(values, label, "row", number)


def _from_disk(path: Path, split: str) -> Any:
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes of a library that expects its own
        raise DataError(f"{path}: not a readable save_to_disk folder: {reason_of(error)}") from None
    if isinstance(found, Dataset):
        return found
    if split not in found:
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(found)}")
    return found[split]


def _from_hub(source: str, split: str) -> Any:
    import datasets

    name, _, config = source.partition(":")
    datasets.disable_progress_bars()
    unreachable = hub.out_of_reach(name)
    before = datasets.config.HF_HUB_OFFLINE
    try:
        # Its only switch. Without a way to the hub it takes what is in its cache, and else ends at once.
        datasets.config.HF_HUB_OFFLINE = before or bool(unreachable)
        return datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = f"{hub.host()} cannot be reached ({unreachable})" if unreachable else reason_of(error)
        raise DataError(
            f"data set {source!r} cannot be loaded: {reason}; check the id, its config and split, and the "
            "network, or name a local file"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def first_row(source: str, split: str = "train") -> dict[str, Any]:
    """The first row of a data set as it stands, all its columns: to see what they are called.

    Raises:
        DataError: as `load_local`, where there is no such source or it cannot be read.
    """
    path = _path(source)
    if path is not None and not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path is None or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        table = _from_hub(source, split) if path is None else _from_disk(path, split)
        for row in table.with_format(None):
            return dict(row)
        raise DataError(f"{source} has no examples; expected at least one")
    _refuse_split(path, split)
    file = _files(path)[0]
    return dict(next(read_file(file, (), columns_of(file))).values)

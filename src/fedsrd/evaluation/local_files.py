"""Benchmarks read from local files: found, and their columns checked, before anything is loaded."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsrd.errors import EvaluationError
from fedsrd.evaluation.suites import Benchmark, named
from fedsrd.packages import file_sha256

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Files:
    """One task's questions, and the file that its worked examples are drawn from."""

    test: Path
    train: Path | None = None

    def override(self) -> dict[str, Any]:
        """The keys of lm-eval's task configuration that read them."""
        # `datasets` takes names for patterns; these are files.
        files = {"test": glob.escape(str(self.test))} | ({"train": glob.escape(str(self.train))} if self.train else {})
        return {
            "dataset_path": _READERS[self.test.suffix],
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "train" if self.train else "test",
        }

    def digest(self) -> str:
        """SHA-256 of their content, in hex."""
        return " ".join(file_sha256(file) for file in (self.test, self.train) if file is not None)


def parse(options: Sequence[str]) -> dict[str, Files]:
    """`--data NAME=PATH` options as files by lm-eval task.

    PATH is a file of one part's questions, or a folder: test.* (and train.*, for the worked examples) for a benchmark
    of one part, and PART.* for each part of one that has several.

    Raises:
        EvaluationError: a name is unknown, a path is missing, of another kind, or lacks columns.
    """
    found: dict[str, Files] = {}
    for option in options:
        name, equals, text = option.partition("=")
        path = Path(os.path.expanduser(text))
        if not equals or not text:
            raise EvaluationError(f"--data {option!r}: expected NAME=PATH, such as gsm8k=questions.jsonl")
        benchmark = named(name.strip(), "--data")
        if path.is_dir():
            files = _in_folder(benchmark, path)
        elif not path.is_file():
            raise EvaluationError(f"--data {option!r}: {path}: no such file or folder")
        elif len(benchmark.tasks) > 1:
            parts = ", ".join(short(task) for task in benchmark.tasks[:3])
            raise EvaluationError(
                f"--data {option!r}: {benchmark.title} has {len(benchmark.tasks)} parts; expected a folder with "
                f"a file for each that you have ({parts}, ...; .jsonl, .json, .csv or .parquet)"
            )
        else:
            files = {benchmark.tasks[0]: Files(path)}
        for task in files.values():
            for file in (task.test, *([task.train] if task.train else [])):
                _check(benchmark, file)
        found |= files
    return found


def short(task: str) -> str:
    """A part's name without its benchmark's.

    >>> short("hendrycks_math_algebra"), short("fedsrd_lawbench_2_10"), short("agieval_lsat_ar")
    ('algebra', '2_10', 'lsat_ar')
    """
    for prefix in ("hendrycks_math_", "fedsrd_lawbench_", "agieval_", "fedsrd_"):
        if task.startswith(prefix):
            return task.removeprefix(prefix)
    return task


def _in_folder(benchmark: Benchmark, folder: Path) -> dict[str, Files]:
    if len(benchmark.tasks) == 1:
        test = _named(folder, "test")
        if test is None:
            raise EvaluationError(f"{folder}: has no test.jsonl (or .json, .csv, .parquet), for {benchmark.title}")
        return {benchmark.tasks[0]: Files(test, _named(folder, "train"))}
    parts = {task: _named(folder, short(task)) for task in benchmark.tasks}
    found = {task: Files(file) for task, file in parts.items() if file is not None}
    if not found:
        names = ", ".join(f"{short(task)}.jsonl" for task in benchmark.tasks[:4])
        raise EvaluationError(f"{folder}: has no part of {benchmark.title}; expected files such as {names}")
    return found


def _named(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{suffix}" for suffix in _READERS)
    return next((file for file in files if file.is_file()), None)


def _check(benchmark: Benchmark, file: Path) -> None:
    from datasets import load_dataset

    reader = _READERS.get(file.suffix)
    if reader is None:
        raise EvaluationError(f"{file}: expected a file that ends in {', '.join(_READERS)}")
    try:
        rows = load_dataset(reader, data_files=glob.escape(str(file)), split="train", streaming=True)
        first = next(iter(rows), None)
    except Exception as error:  # every reader has its own kinds of errors
        raise EvaluationError(f"{file}: cannot be read as {reader}: {_first_line(error)}") from None
    if first is None:
        raise EvaluationError(f"{file}: holds no questions")
    missing = [column for column in benchmark.columns if column not in first]
    if missing:
        raise EvaluationError(
            f"{file}: {benchmark.title} needs the columns {', '.join(benchmark.columns)}; missing: "
            f"{', '.join(missing)} (found: {', '.join(map(str, first))})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

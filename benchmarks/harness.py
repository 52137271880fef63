"""Timing, tables and storage of the benchmarks. Ratios come from one run: both sides in turn, the medians compared."""

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table


@dataclass
class Result:
    """What one benchmark found.

    Attributes:
        title: the question.
        columns: of the table.
        rows: one list of cells a line, in the order of the columns; numbers stay numbers in the JSON.
        notes: what a reader must know, such as what is extrapolated.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def alternate(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, called in turn after one round to warm up; results are dropped at once."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def once(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_mib(call: Callable[[], Any]) -> float:
    """By how many MiB the resident memory rose at most above where it stood, during the call (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before must not hide what is needed now
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0.0)


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def show(name: str, result: Result, command: str, folder: Path | None) -> None:
    """Prints the table and stores the JSON."""
    table = Table(title=result.title)
    for column in result.columns:
        table.add_column(column, justify="right")
    for row in result.rows:
        table.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=120 if not sys.stdout.isatty() else None)
    console.print(table)
    for note in result.notes:
        console.print(f"  {note}", highlight=False)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stored = {"command": command, "machine": machine(), **asdict(result)}
        (folder / f"speed-{name}.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def _status(key: str) -> float:
    for line in _lines("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

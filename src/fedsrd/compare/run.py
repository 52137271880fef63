"""Runs a comparison, one run after the other in one process, with one model and one copy of the data.

Each run is a run folder like any other, so a comparison that stops continues in the middle of a run. A second process
started with --resume in the same folder takes runs that nobody is at work on, and both end with the same tables.
"""

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from fedsrd.compare.plan import Comparison, Run
from fedsrd.compare.results import FAILED, chosen
from fedsrd.errors import FedSRDError, RunFolderError
from fedsrd.federation import local, setup
from fedsrd.federation.session import Assets, Observer
from fedsrd.files import ABANDONED, is_temporary, refuse_link, sweep, write_atomically
from fedsrd.runs.folder import RunFolder

FILE = "comparison.toml"
LOCK = ".lock"
"""Held while comparison.toml is written: of two comparisons that start in one folder, the second is refused."""
PAUSE = 2.0
"""Seconds between two looks at runs that another process has."""


class Watcher(Observer, Protocol):
    """Who is told how a comparison goes: an observer of its runs that is told which run is next, and how it ended."""

    def run_started(self, run: Run, place: int, count: int) -> None:
        """Run number `place` of `count` starts or continues."""

    def run_done(self, run: Run, folder: Path, seconds: float) -> None:
        """A run is complete."""

    def run_failed(self, run: Run, reason: str) -> None:
        """A run ended in an error; the others go on."""


def check_folder(comparison: Comparison, out: Path, *, resume: bool) -> None:
    """Refuses a folder that another comparison, or anything else, is in.

    Raises:
        RunFolderError: the folder is not empty and `resume` is false, or it is of another comparison.
    """
    file = out / FILE
    if file.is_file():
        if not resume:
            raise RunFolderError(
                f"{out} holds a comparison already; continue it with --resume, or choose another --out"
            )
        if file.read_bytes() != comparison.to_toml().encode():
            raise RunFolderError(
                f"{out} is another comparison (its comparison.toml differs from what was given); resume it with "
                f"`fedsrd compare {file} --out {out} --resume`, or choose another --out"
            )
    elif out.exists() and (not out.is_dir() or not all(_ours(path.name) for path in out.iterdir())):
        raise RunFolderError(f"{out} is not an empty folder; choose another --out")


def _ours(name: str) -> bool:
    """Whether a file may be there before comparison.toml is."""
    return name in ("runs", LOCK) or is_temporary(name)


def run(comparison: Comparison, out: Path, watcher: Watcher, *, resume: bool) -> None:
    """Makes every run of a comparison that is not complete in `out`.

    Raises:
        RunFolderError: as `check_folder`.
        DataError, ModelError, RecipeError: a variant cannot run. Nothing was started.
    """
    check_folder(comparison, out, resume=resume)
    assets = Assets()
    watcher.say("Checking every variant")
    for one in comparison.each():
        setup.check(one.recipe, watcher, assets)
    _begin(comparison, out, resume=resume)
    began = time.time()
    while True:
        todo = [one for one in _missing(comparison, out) if not _failed_since(began, one.folder(out))]
        if not todo:
            return
        for one in todo:
            folder = RunFolder(one.folder(out))
            if not folder.try_lock():
                continue
            # Another process may have finished it since we looked.
            if not folder.complete and not _failed_since(began, folder.path):
                _one(comparison, one, folder, out, watcher, assets)
            folder.unlock()
            break
        else:
            time.sleep(PAUSE)


def _begin(comparison: Comparison, out: Path, *, resume: bool) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_link(out / LOCK)
        with FileLock(out / LOCK):
            check_folder(comparison, out, resume=resume)
            sweep(out, ABANDONED)
            write_atomically(out / FILE, comparison.to_toml().encode())
    except OSError as error:
        raise RunFolderError(f"{out} cannot be used: {error.strerror or error}; choose another --out") from None


def _missing(comparison: Comparison, out: Path) -> Iterator[Run]:
    """The runs that can start and are not complete, in the table's order; a search before what depends on it."""
    for variant in comparison.variants:
        searches = comparison.searches(variant)
        point = chosen(comparison, variant, out)
        runs = [*searches, *(comparison.finals(variant, point) if point is not None else [])]
        seen = set()
        for one in runs:
            if one.folder(out) not in seen and not RunFolder(one.folder(out)).complete:
                seen.add(one.folder(out))
                yield one


def _one(comparison: Comparison, one: Run, folder: RunFolder, out: Path, watcher: Watcher, assets: Assets) -> None:
    """Makes or continues one run; where it fails, for whatever reason, says so and leaves the reason in its folder."""
    ended = {file.parent for name in ("summary.json", FAILED) for file in (out / "runs").rglob(name)}
    done = len(ended - {folder.path})
    watcher.run_started(one, done + 1, comparison.count())
    began = time.perf_counter()
    failure = folder.path / FAILED
    failure.unlink(missing_ok=True)
    try:
        resume = folder.recipe_file.is_file()
        prepared = setup.prepare(one.recipe, folder, resume=resume, observer=watcher, assets=assets)
        local.run(prepared, watcher, assets=assets)
    except Exception as error:  # one run's bug or bad luck must not cost the others
        reason = str(error) if isinstance(error, FedSRDError) else traceback.format_exc()
        write_atomically(failure, reason.encode(errors="replace"))
        watcher.run_failed(one, reason)
        return
    watcher.run_done(one, folder.path, time.perf_counter() - began)


def _failed_since(moment: float, folder: Path) -> bool:
    # A run that failed before is tried again: what was wrong may be mended.
    file = folder / FAILED
    return file.is_file() and file.stat().st_mtime >= moment

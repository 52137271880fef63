"""One progress display for a comparison: a line that stays for every run, and one that moves."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsrd.compare.plan import Run, slug
from fedsrd.report.comparison import last_line, short

Record = dict[str, Any]


class CompareDisplay:
    """Shows a comparison as it goes.

    Use as a context manager. Without a terminal there are only the lines that stay.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._runs = self._progress.add_task("runs", total=None, detail="")
        self._rounds = self._progress.add_task("round", total=None, detail="", visible=False)
        self._began = time.perf_counter()
        self._last: Record = {}
        self._title = ""

    def __enter__(self) -> "CompareDisplay":
        """Starts the moving lines."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the moving lines away."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        elapsed = time.perf_counter() - self._began
        self._progress.console.print(f"[dim]{elapsed:7.1f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One loud line that stays."""
        self._progress.console.print(f"[bold red]warning[/bold red]    {self._title}: {text}", highlight=False)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Moves the moving line."""
        self._progress.update(self._rounds, detail=f"{what} {done}/{total} {detail}", visible=True)

    def round_done(self, record: Record) -> None:
        """A round of the present run is complete."""
        self._progress.update(self._rounds, completed=record["round"], visible=True)
        if record["eval"]:
            self._last = record["eval"]

    def run_started(self, run: Run, place: int, count: int) -> None:
        """The next run."""
        where = f" {short(slug(run.point))}" if run.point else ""
        self._title = f"{run.label}{where} seed {run.seed}"
        self._progress.update(self._runs, total=count, completed=place - 1, detail=self._title)
        self._progress.reset(self._rounds, total=run.recipe.rounds, detail="")
        self.say(f"[{place}/{count}] {self._title}")

    def run_done(self, run: Run, folder: Path, seconds: float) -> None:
        """The present run is complete."""
        inside = [entry.name for entry in run.recipe.evaluation.sets if entry.in_domain]
        quality = sum(self._last[name] for name in inside) / len(inside) if inside else float("nan")
        self.say(f"    {seconds:.0f} s, in-domain NLL {quality:.3f}")

    def run_failed(self, run: Run, reason: str) -> None:
        """The present run failed; the others go on."""
        self.warn(f"failed: {last_line(reason)}")

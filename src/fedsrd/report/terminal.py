"""The terminal: live progress of a run, and the closing tables."""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, Self

from rich import box
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedsrd.means import mean
from fedsrd.packages import watched
from fedsrd.report.screen import Screen, styled
from fedsrd.runs.promise import sentences
from fedsrd.runs.records import RoundRecord, Summary

PHASES = {
    "train": ("train",),
    "sparsify": ("sparsify",),
    "codec": ("encode", "decode", "broadcast"),
    "server": ("server",),
    "apply": ("apply",),
    "eval": ("evaluate",),
}
"""Columns of the rounds table, and the phases of rounds.jsonl that each one adds up."""


class Display:
    """Lines that stay, and below them lines that move. Use as a context manager.

    Without a terminal there are only the lines that stay.

    Args:
        console: where to.
        columns: of a moving line, besides its description and the times.
    """

    def __init__(self, console: Screen, *columns: ProgressColumn) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            *columns,
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._began = time.perf_counter()
        self._transfers: dict[str, tuple[Any, float]] = {}
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Starts the moving lines."""
        self.progress.start()
        self._inside.enter_context(watched(self.transfer))
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the moving lines away."""
        self._inside.close()
        self.progress.stop()

    def transfer(self, what: str, done: int, total: int) -> None:
        """A line that moves, for as long as a download takes."""
        if what not in self._transfers:
            self._transfers[what] = (
                self.progress.add_task(f"fetching {what}", total=total // 10**6, detail=""),
                time.time(),
            )
        task, began = self._transfers[what]
        rate = done / max(time.time() - began, 0.1)
        detail = f"MB, {rate / 1e6:.1f} MB/s"
        self.progress.update(task, completed=done // 10**6, detail=detail, visible=done < total)

    def say(self, text: str) -> None:
        """One line that stays."""
        elapsed = time.perf_counter() - self._began
        self.console.print(styled("dim", f"{elapsed:7.1f} s", f"  {text}"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """One loud line that stays."""
        self.console.print(styled("bold red", "warning", f"    {text}"))


class RunDisplay(Display):
    """Shows a run as it goes: one line a round that stays, one line of progress that moves."""

    def __init__(self, console: Screen, rounds: int) -> None:
        super().__init__(console, BarColumn(bar_width=24))
        self._rounds = rounds
        self._at = ("", 0, 0.0)
        self._task = self.progress.add_task("preparing", total=rounds, detail="", start=True)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Moves the moving line."""
        text = f"round {round_number}/{self._rounds}  {what}"
        if text != self._at[0]:
            self._at = (text, done, time.perf_counter())
        gone, seconds = done - self._at[1], time.perf_counter() - self._at[2]
        rate = f"  {seconds / gone:.1f} s each" if gone > 0 else ""
        self.progress.update(self._task, description=text, detail=f"{done}/{total} {detail}{rate}")

    def round_done(self, record: RoundRecord) -> None:
        """One line about a complete round."""
        number = record.round
        self.progress.update(self._task, completed=number)
        quality = ", ".join(f"{name} {value:.2f}" for name, value in record.eval.items())
        if number == 0:
            self.say(f"start  down {amount(mean(record.bytes_down.values()) or 0)} a client")
            self._quality(quality)
            return
        up, down = (mean(sizes.values()) or 0 for sizes in (record.bytes_up, record.bytes_down))
        self.say(
            f"round {number}/{self._rounds}  {loss_text(record.train_loss)}  "
            f"up {amount(up)}  down {amount(down)} ({record.factor_down})"
        )
        self._quality(quality)

    def _quality(self, quality: str) -> None:
        if quality:
            self.say(f"NLL {quality}")


def now() -> str:
    """The local time, for a folder's name."""
    return time.strftime("%Y%m%d-%H%M%S")


def amount(count: float) -> str:
    """Bytes for people: B, KiB or MiB.

    >>> amount(980_000)
    '957.0 KiB'
    """
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f} MiB"


def rounds_table(records: Sequence[RoundRecord]) -> Table:
    """One line a round: bytes a client up and down, seconds of each phase, training loss."""
    title = "Rounds: MiB a client (as sent), seconds of all clients, loss"
    table = Table(title=title, box=box.SIMPLE, padding=0, pad_edge=False)
    for column in ("round", "up MiB", "down MiB", *PHASES, "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in records:
        seconds = record.seconds
        table.add_row(
            str(record.round),
            f"{(mean(record.bytes_up.values()) or 0) / (1 << 20):.2f}",
            f"{(mean(record.bytes_down.values()) or 0) / (1 << 20):.2f} {record.factor_down}",
            *(f"{sum(seconds[p] for p in phases):.2f}" if seconds else "" for phases in PHASES.values()),
            "" if record.train_loss is None or math.isnan(record.train_loss) else f"{record.train_loss:.3f}",
        )
    return table


def quality_table(summary: Summary) -> Table | None:
    """Held-out quality of each domain before and after; None where it was not measured."""
    base, final = summary.base, summary.final
    if base is None or final is None:
        return None
    table = Table(title="Held-out NLL, nats a token ↓ (± standard error)", box=box.SIMPLE, pad_edge=False)
    for column in ("set", "base", "after", "change"):
        table.add_column(column, justify="left" if column == "set" else "right")
    rows: list[tuple[str, float | None, float | None]] = [
        *((name, value, final.by_set.get(name)) for name, value in base.by_set.items()),
        ("mean in domain", base.in_domain, final.in_domain),
        ("mean out of domain", base.out_of_domain, final.out_of_domain),
    ]
    for name, before, after in rows:
        if before is not None and after is not None:
            cells = (with_error(before, base.stderr.get(name)), with_error(after, final.stderr.get(name)))
            table.add_row(name, *cells, f"{after - before:+.3f}")
    return table


def with_error(value: float, stderr: float | None) -> str:
    """An NLL with its standard error, where that is known.

    >>> with_error(2.4031, 0.0517)
    '2.403 ± 0.052'
    """
    return f"{value:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def privacy(summary: Summary) -> list[str]:
    """What the run promises about its data, a line each; nothing where it promises nothing."""
    return [f"Privacy: {sentence}" for sentence in sentences(summary)]


def loss_text(loss: float | None) -> str:
    """A mean training loss, or that nobody told any (under differential privacy nobody does)."""
    return "loss not told" if loss is None or math.isnan(loss) else f"loss {loss:.3f}"


def totals(summary: Summary) -> str:
    """What was sent in all, against dense averaging."""
    whole = summary.bytes_up + summary.bytes_down
    text = f"Sent {amount(summary.bytes_up)} up and {amount(summary.bytes_down)} down, {amount(whole)} in all"
    if summary.ratio_to_dense_float32 is None:
        return text
    return (
        f"{text}: {summary.ratio_to_dense_float32:.1%} of dense float32, "
        f"{summary.ratio_to_dense_bfloat16:.1%} of dense bfloat16"
    )

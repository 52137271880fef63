"""An evaluation in the terminal: progress, and the table of scores."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.progress import BarColumn
from rich.table import Table

from fedsrd.evaluation import embedded, scores
from fedsrd.report import terminal
from fedsrd.report.screen import Screen
from fedsrd.report.terminal import Display
from fedsrd.runs.records import RoundRecord, Summary


class EvaluationDisplay(Display):
    """One moving line: subject, part, questions."""

    def __init__(self, console: Screen) -> None:
        super().__init__(console, BarColumn(bar_width=24))
        self._task = self.progress.add_task("preparing", total=None, detail="")
        self._at = ""

    def activity(self, subject: str, part: str, done: int, total: int) -> None:
        """Moves the moving line, and says once what is being measured."""
        text = f"{subject}  {part}"
        if text != self._at:
            self._at = text
            self.progress.reset(self._task, total=total)
            if not self.console.is_terminal:
                self.say(text)
        self.progress.update(self._task, description=text, completed=done, total=total)


def benchmarks_table(summary: Summary) -> Table | None:
    """A run's benchmarks before and after, None where it has none."""
    if not summary.benchmarks:
        return None
    return scores_table(embedded.before_and_after(summary.benchmarks))


def closing_tables(records: Sequence[RoundRecord], summary: Summary) -> list[Table]:
    """What a run ends with, in one process and under Flower alike: rounds, quality, benchmarks, as far as measured."""
    quality = terminal.quality_table(summary)
    found = (terminal.rounds_table(records), quality, benchmarks_table(summary))
    return [table for table in found if table is not None]


def scores_table(found: Mapping[str, Sequence[scores.Score]]) -> Table:
    """All subjects' scores; averages below a line."""
    heads, lines = scores.table(found)
    table = Table(title="↓: less is better; ± one standard error", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place > 2 else "left", no_wrap=True)
    for place, cells in enumerate(lines):
        last = place + 1 < len(lines) and not cells[0].startswith("mean") and lines[place + 1][0].startswith("mean")
        table.add_row(*cells, end_section=last)
    return table

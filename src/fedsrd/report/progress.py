"""One progress display for a comparison: a line that stays for every run, and one that moves."""

from pathlib import Path

from rich.progress import BarColumn

from fedsrd.compare.plan import Run, slug
from fedsrd.means import domain_means
from fedsrd.report.comparison import last_line, short
from fedsrd.report.screen import Screen
from fedsrd.report.terminal import Display
from fedsrd.runs.records import RoundRecord


class CompareDisplay(Display):
    """Shows a comparison as it goes: a line that stays for every run, and two that move, runs and rounds."""

    def __init__(self, console: Screen) -> None:
        super().__init__(console, BarColumn(bar_width=20))
        self._runs = self.progress.add_task("runs", total=None, detail="")
        self._rounds = self.progress.add_task("round", total=None, detail="", visible=False)
        self._last: dict[str, float] = {}
        self._title = ""

    def warn(self, text: str) -> None:
        """One loud line that stays, with the run that it is about."""
        super().warn(f"{self._title}: {text}")

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Moves the moving line."""
        self.progress.update(self._rounds, detail=f"{what} {done}/{total} {detail}", visible=True)

    def round_done(self, record: RoundRecord) -> None:
        """A round of the present run is complete."""
        self.progress.update(self._rounds, completed=record.round, visible=True)
        if record.eval:
            self._last = record.eval

    def run_started(self, run: Run, place: int, count: int) -> None:
        """The next run."""
        where = f" {short(slug(run.point))}" if run.point else ""
        self._title = f"{run.label}{where} seed {run.seed}"
        self.progress.update(self._runs, total=count, completed=place - 1, detail=self._title)
        self.progress.reset(self._rounds, total=run.recipe.rounds, detail="")
        self.say(f"[{place}/{count}] {self._title}")

    def run_done(self, run: Run, folder: Path, seconds: float) -> None:
        """The present run is complete."""
        sets = {entry.name: entry.in_domain for entry in run.recipe.evaluation.sets}
        quality = domain_means(self._last, sets).in_domain
        self.say(f"    {seconds:.0f} s, in-domain NLL {float('nan') if quality is None else quality:.3f}")

    def run_failed(self, run: Run, reason: str) -> None:
        """The present run failed; the others go on."""
        self.warn(f"failed: {last_line(reason)}")

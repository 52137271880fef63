"""What a comparison leaves behind: results.json, table.md, table.csv and figures, and the tables in the terminal."""

from pathlib import Path
from typing import Any

from fedsrd.compare.plan import Comparison
from fedsrd.compare.results import collect
from fedsrd.federation.setup import environment
from fedsrd.files import write_atomically
from fedsrd.report import comparison as tables
from fedsrd.report.figures.static import draw
from fedsrd.report.page.write import report
from fedsrd.report.screen import styled
from fedsrd.runs.results import Results, results_text


def write(comparison: Comparison, out: Path) -> Results:
    """Collects the results and writes them; gives them."""
    command = "fedsrd compare comparison.toml"
    found = collect(comparison, out).model_copy(update={"command": command, "environment": environment()})
    write_atomically(out / "results.json", results_text(found).encode())
    results = found.plain()
    write_atomically(out / "table.md", tables.markdown(results, command).encode())
    write_atomically(out / "table.csv", tables.as_csv(results).encode())
    draw(results, out / "figures")
    report([out], out / "report.html")
    return found


def show(console: Any, results: Results, out: Path) -> None:
    """The closing tables."""
    for table in tables.terminal_tables(results.plain()):
        console.print(table)
    show_failures(console, results)
    # Paths are not wrapped: people copy them.
    for what, where in (
        ("Report", "report.html"),
        ("Tables", "table.md, table.csv"),
        ("Figures", "figures"),
        ("Numbers", "results.json"),
    ):
        console.print(f"{what}: {out}/{where}", soft_wrap=True, highlight=False)


def show_failures(console: Any, results: Results) -> None:
    """A line for every run that failed."""
    for row in results.rows:
        for failure in row.failed:
            reason = tables.last_line(failure.reason)
            console.print(styled("bold red", "failed", f" {row.label}, seed {failure.seed}: {reason}"))

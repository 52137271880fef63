"""What `fedsrd demo` shows: what it does, round by round, and one picture of quality and bytes at the end."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.bar import Bar
from rich.table import Table

from fedsrd.compare.plan import Comparison, Run
from fedsrd.report.progress import CompareDisplay
from fedsrd.report.screen import styled
from fedsrd.report.terminal import amount, loss_text
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Sample
from fedsrd.runs.results import BenchmarkRow, Results, Row
from fedsrd.text import foreign

INTRODUCTION = (
    "Four clinics teach SmolLM2-135M which organ system a finding concerns. Each has the findings of three systems, "
    "and none leaves its clinic.",
    "First with FedAvg, then with FedSRD, on the same data in the same order; last, neurology alone. Four minutes.",
)
ALONE = "alone"
"""The label of the variant with one client, which sends nothing to anybody."""
WIDTH = 20
"""Characters of a bar."""
SHOWN = 22
"""Characters of an answer."""
BASE = "base model"


class DemoDisplay(CompareDisplay):
    """A comparison's progress, with a line a round that stays."""

    def run_started(self, run: Run, place: int, count: int) -> None:
        """The next run."""
        super().run_started(run, place, count)
        self._of = run.recipe.rounds, run.label == ALONE

    def round_done(self, record: RoundRecord) -> None:
        """A round of the present run is complete."""
        super().round_done(record)
        if record.round == 0:
            return
        rounds, alone = self._of
        up, down = (max(sizes.values(), default=0) for sizes in (record.bytes_up, record.bytes_down))
        sent = "" if alone else f"  a clinic sent {amount(up)} and got {amount(down)}"
        self.say(f"    round {record.round}/{rounds}  {loss_text(record.train_loss)}{sent}")


def answers(comparison: Comparison, out: Path) -> dict[str, Mapping[str, Sequence[Sample]]]:
    """The answers to the held-out prompts in domain, by set: the base model's, then each variant's after its run."""
    found: dict[str, Mapping[str, Sequence[Sample]]] = {}
    for variant in comparison.variants:
        run = comparison.run(variant, comparison.points(variant)[0], comparison.seeds[0])
        inside = {entry.name for entry in run.recipe.evaluation.sets if entry.in_domain}
        kept = [record.samples for record in RunFolder(run.folder(out)).records() if record.samples]
        if len(kept) < 2:
            continue
        for label, samples in ((BASE, kept[0]), (variant.label, kept[-1])):
            found.setdefault(label, {name: given for name, given in samples.items() if name in inside})
    return found


def show(console: Any, results: Results, said: Mapping[str, Mapping[str, Sequence[Sample]]], out: Path) -> None:
    """The closing picture, the answers, what it comes to, and where to look next; the report's path comes last."""
    console.print(picture(results))
    console.print(quality(results))
    console.print(answers_table(said))
    for line in sentences(results):
        console.print(line)
    console.print(f"Report: {out}/report.html", soft_wrap=True, highlight=False)


def picture(results: Results) -> Table:
    """Right answers and bytes, a bar each."""
    table = _table("Right answers to findings that no clinic trained on, and what they took")
    for head in ("", "right", "", "sent", ""):
        table.add_column(head, justify="right" if head in ("right", "sent") else "left", no_wrap=True)
    most = max(_bytes(row) for row in results.rows)
    shares = [(BASE, *right(results.rows[0], base=True), 0.0)]
    shares += [(row.label, *right(row), _bytes(row)) for row in results.rows]
    for label, share, error, sent in shares:
        bar = Bar(100, 0, share, width=WIDTH, color="green")
        size = Bar(most, 0, sent, width=WIDTH, color="red") if sent else ""
        table.add_row(label, f"{share:.0f} ± {error:.0f} %", bar, f"{sent / 2**20:.0f} MiB" if sent else "-", size)
    return table


def quality(results: Results) -> Table:
    """Right answers by clinic, and likelihoods, with their standard errors."""
    rows = results.rows
    shares = [name for name, one in rows[0].benchmarks.items() if one.unit == "%"]
    nats = [name for name, one in rows[0].benchmarks.items() if one.unit == "nats"]
    table = _table("By clinic, % ↑; NLL of the right answer, nats a token ↓; ± standard error")
    table.add_column("", no_wrap=True)
    for name in shares:
        table.add_column(rows[0].benchmarks[name].title.removesuffix("'s findings"), justify="right", no_wrap=True)
    for _ in nats:
        table.add_column("NLL", justify="right", no_wrap=True)
    table.add_row(BASE, *(_figure(rows[0].benchmarks[name], base=True) for name in (*shares, *nats)))
    for row in rows:
        table.add_row(row.label, *(_figure(row.benchmarks[name]) for name in (*shares, *nats)))
    return table


def answers_table(said: Mapping[str, Mapping[str, Sequence[Sample]]]) -> Table:
    """The first held-out finding of each clinic, and what each model answers to it."""
    table = _table("Answers to held-out findings")
    shown = {label: samples for label, samples in said.items() if label != ALONE}
    table.add_column("finding", width=20)
    for head in ("right", *shown):
        table.add_column(
            head, overflow="ellipsis", no_wrap=True, max_width=11 if head == BASE else 15 - (head in shown)
        )
    asked = next(iter(shown.values()), {})
    for name, samples in asked.items():
        for place, sample in enumerate(samples):
            given = [foreign(of[name][place].answer.strip(), SHOWN) for of in shown.values()]
            question = sample.prompt.rpartition(": ")[2].rstrip("?")
            table.add_row(foreign(question), foreign(sample.wanted, SHOWN), *given)
    return table


def sentences(results: Results) -> list[Any]:
    """What the demo comes to, in words, and what to do next."""
    rows = {row.label: row for row in results.rows}
    ours, theirs = rows["FedSRD"], rows["FedAvg"]
    (share, error), (other, its) = right(ours), right(theirs)
    factor = _bytes(theirs) / _bytes(ours)
    return [
        styled(
            "bold",
            "FedSRD",
            f" sent {_each(ours)} a clinic and round, FedAvg {_each(theirs)}: {factor:.0f} times as much. Right "
            f"answers: {share:.0f} ± {error:.0f} % and {other:.0f} ± {its:.0f} %. One clinic alone knows its own.",
        ),
        "Your own data: fedsrd init my.toml, then fedsrd run my.toml",
    ]


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))


def right(row: Row, *, base: bool = False) -> tuple[float, float]:
    """Mean share of right answers over the clinics, in percent, and its standard error."""
    found = [one for one in row.benchmarks.values() if one.unit == "%"]
    values = [one.base if base or one.after is None else one.after.mean for one in found]
    if base:
        return sum(values) / len(values), 0.0
    return sum(values) / len(values), math.sqrt(sum((one.stderr or 0.0) ** 2 for one in found)) / len(found)


def _bytes(row: Row) -> float:
    if row.label == ALONE or row.bytes_up is None or row.bytes_down is None:
        return 0.0
    return row.bytes_up.mean + row.bytes_down.mean


def _each(row: Row) -> str:
    return amount(_bytes(row) / (row.rounds * row.clients))


def _figure(one: BenchmarkRow, *, base: bool = False) -> str:
    digits = 2 if one.unit == "nats" else 0
    if base or one.after is None:
        return f"{one.base:.{digits}f}"
    error = "" if one.stderr is None else f" ± {one.stderr:.{digits}f}"
    return f"{one.after.mean:.{digits}f}{error}"

"""What left a site and what its rules are, for people who answer for it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from fedsrd.errors import FederationError
from fedsrd.federation.remote.audit import Entry, Line, chain
from fedsrd.federation.remote.rules import SiteFile, Tell

PROVES = (
    "The chain shows lines that were changed, removed or put in between, by whoever does not write all later lines "
    "anew. It does not bind who owns the machine, and a cut at the end shows only to who has kept a later hash "
    "(--after HASH)."
)
_TOLD = ("name", "key", "held", "digest")
"""What the greeting and every answer say; not shown line by line."""


@dataclass
class Run:
    """What left in one run.

    Attributes:
        messages: of any kind.
        updates: those with a payload.
        bytes: of all of them.
        rounds: in which an update left.
        epsilon: the last that was told.
        first: Unix seconds of the first message.
        last: of the last.
    """

    messages: int = 0
    updates: int = 0
    bytes: int = 0
    rounds: set[int] = field(default_factory=set)
    epsilon: float | None = None
    first: float = 0.0
    last: float = 0.0

    def add(self, line: Line) -> None:
        """One more message."""
        self.first = line.time if not self.messages else self.first
        self.last = line.time
        self.messages += 1
        self.bytes += line.bytes
        if line.payload:
            self.updates += 1
            self.rounds |= set() if line.round is None else {line.round}
        told = line.told.get("epsilon")
        self.epsilon = told if isinstance(told, int | float) else self.epsilon


@dataclass
class Summary:
    """A whole log, read once.

    Attributes:
        runs: by their ids; "" is what named none.
        lines: the last ones.
        problems: where the chain is broken, or a line is none.
        count: of all lines.
        hash: of the last line.
        found: whether the line that was noted before is there.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    lines: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    count: int = 0
    hash: str = ""
    found: bool = False


def summarise(entries: Iterator[Entry], last: int, after: str | None = None) -> Summary:
    """Reads a log to its end, or to the first line that is none.

    Args:
        entries: of `audit.Audit`.
        last: how many lines are kept.
        after: hash of a line that was noted before, which must be there.
    """
    found = Summary()
    try:
        for entry, problem in chain(entries, after):
            found.problems += [problem] if problem else []
            found.found |= after in (entry.hash, entry.line.before)
            found.count, found.hash = found.count + 1, entry.hash
            if entry.line.kind != "repaired":
                found.runs.setdefault(entry.line.run, Run()).add(entry.line)
            found.lines.append(entry)
            if len(found.lines) > 2 * last:
                del found.lines[:-last]
    except FederationError as error:
        found.problems.append(str(error))
    del found.lines[:-last]
    if after is not None and not found.found:
        found.problems.append(f"no line has the hash {after[:16]}: lines were removed, or changed")
    return found


def lines_table(entries: Sequence[Entry]) -> Table:
    """One row a message."""
    table = _table(("line", "UTC", "run", "round", "message", "bytes", "told"), right=("line", "round", "bytes"))
    for entry in entries:
        line = entry.line
        number = "" if line.round is None else str(line.round)
        table.add_row(
            str(line.number), _clock(line.time), line.run[:8], number, _kind(line), f"{line.bytes:,}", _told(line)
        )
    return table


def runs_table(runs: Mapping[str, Run]) -> Table:
    """One row a run, and the whole: last message, messages, updates among them, their rounds, bytes, epsilon told."""
    columns = ("run", "last", "sent", "updates", "rounds", "bytes", "epsilon")
    table = _table(columns, right=columns[2:])
    for name, run in runs.items():
        epsilon = "" if run.epsilon is None else f"{run.epsilon:.4g}"
        counts = (run.messages, run.updates, len(run.rounds), run.bytes)
        table.add_row(name or "none", _clock(run.last)[:16], *(f"{n:,}" for n in counts), epsilon)
    if len(runs) > 1:
        whole = [sum(getattr(run, name) for run in runs.values()) for name in ("messages", "updates", "bytes")]
        rounds = sum(len(run.rounds) for run in runs.values())
        counts = (whole[0], whole[1], rounds, whole[2])
        table.add_row("all", "", *(f"{n:,}" for n in counts), "")
    return table


def in_words(site: SiteFile) -> list[str]:
    """The rules in force, one sentence a line."""
    rules = site.rules
    numbers = (
        ("rank", "an adapter's rank is at most {:,}"),
        ("parameters", "at most {:,} parameters are trained"),
        ("rounds", "at most {:,} rounds are trained on this data, in all runs together"),
        ("rounds_per_run", "at most {:,} rounds are trained in one run"),
        ("steps", "at most {:,} optimizer steps are taken on this data, in all runs together"),
        ("epochs", "training passes at most {:g} times over this data, in all runs together"),
        ("update_bytes", "an update has at most {:,} bytes"),
    )
    lists = (("methods", "methods"), ("models", "base models"), ("targets", "adapted layers"), ("runs", "runs"))
    said = [f"{what}: {', '.join(getattr(rules, name) or ['any'])}" for name, what in lists]
    for name, text in numbers:
        value = getattr(rules, name)
        said.append(f"{name}: no limit" if value is None else text.format(value))
    said.append(
        "updates leave only masked (secure aggregation)"
        if rules.secure_aggregation
        else "the server may see this site's updates one by one"
    )
    said += [f"{name}: {'told' if getattr(rules.tell, name) else 'not told'}" for name in Tell.model_fields]
    if site.privacy is None:
        said.append("differential privacy of examples: not asked for")
    else:
        said.append(
            f"differential privacy of examples: epsilon {site.privacy.epsilon:g} at delta {site.privacy.delta:g}, in "
            "all runs together"
        )
    return said


def _kind(line: Line) -> str:
    if line.kind == "train-reply":
        return "update" if line.payload else "no update"
    return {"hello-reply": "greeting", "sync-reply": "state"}.get(line.kind, line.kind)


def _told(line: Line) -> str:
    if line.kind == "repaired":
        return "cut off what a crash had left of a line; that message was never sent"
    hidden = (*_TOLD, "seconds", *(() if line.payload else ("examples",)))
    parts = [f"{name} {_value(value)}" for name, value in line.told.items() if name not in hidden]
    if isinstance(phases := line.told.get("seconds"), Mapping):
        parts.append(f"seconds {sum(one for one in phases.values() if isinstance(one, int | float)):.4g}")
    if line.asked:
        parts.append(f"asked: {_value(line.asked)}")
    return "; ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items() if one is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


def _table(columns: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=0)
    for column in columns:
        fold = column == "told"
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
    return table

"""A comparison's tables: in the terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from fedsrd.report.figures.figure import MIB

Record = dict[str, Any]
Cells = tuple[list[str], list[list[str]]]
"""Headings, and lines of cells."""


def ordered(results: Record) -> list[Record]:
    """The rows with results: federated methods by in-domain quality, best first, then the reference points."""
    rows = [row for row in results["rows"] if row["runs"]]
    return sorted(rows, key=lambda row: (row["reference"], row["own"]["mean"]))


def quality_rows(results: Record) -> Cells:
    """The quality table: the base model first, then every row."""
    rows = ordered(results)
    if not rows:
        return [], []
    first = rows[0]["curves"][0]
    sets = list(first["base"])
    personal = any(_own(row) for row in rows)
    heads = ["method", "in-domain", *(["own domain"] if personal else []), "out of domain", *sets]
    base = number(rows[0]["base"]["mean"])
    cells = [["base model", *[base] * (1 + personal), number(first["out_of_domain"][0])]]
    cells[0] += [number(first["base"][name]) for name in sets]
    for row in rows:
        own = [spread(row["own"]) if _own(row) else "same"] if personal else []
        line = [row["label"], spread(row["in_domain"]), *own, spread(row["out_of_domain"])]
        cells.append(line + [spread(row["by_set"][name]) for name in sets])
    return heads, cells


def cost_rows(results: Record) -> Cells:
    """The cost table: bytes a client and round, in all, and to the target."""
    heads = ["method", "setting", "up MiB", "down MiB", "total MiB", "to target MiB"]
    cells = []
    for row in ordered(results):
        turns = max(row["rounds"] * row["clients"], 1)
        up, down = row["bytes_up"]["mean"], row["bytes_down"]["mean"]
        reached = row["bytes_to_target"]
        cells.append(
            [
                row["label"],
                setting(row["point"]),
                mib(up / turns),
                mib(down / turns),
                mib(up + down),
                "-" if row["reference"] or row["personal"] else mib(reached["mean"]) if reached else "not reached",
            ]
        )
    return heads, cells


def benchmark_rows(results: Record) -> Cells:
    """The table of the embedded suite's benchmarks; empty where a row has none."""
    rows = [row for row in ordered(results) if row.get("benchmarks")]
    if not rows:
        return [], []
    first = rows[0]["benchmarks"]
    arrows = {"nats": "↓", "%": "% ↑"}
    heads = ["method", *(f"{one['title']} {arrows[one['unit']]}" for one in first.values())]
    cells = [["base model", *(_figure(one["base"], one["unit"]) for one in first.values())]]
    for row in rows:
        found = [row["benchmarks"][name] for name in first]
        cells.append([row["label"], *(_figure(one["after"]["mean"], one["unit"]) for one in found)])
    errors = [_figure(one["stderr"], one["unit"]) for one in first.values()]
    cells.append(["(standard error)", *errors])
    return heads, cells


def seconds_rows(results: Record) -> Cells:
    """The table of seconds a round by phase."""
    rows = ordered(results)
    phases = list(rows[0]["seconds"]) if rows else []
    cells = [[row["label"], *(f"{row['seconds'][phase]['mean']:.2f}" for phase in phases)] for row in rows]
    return ["method", *phases], cells


def terminal_tables(results: Record) -> list[Table]:
    """The tables for the terminal; quality set by set is a table of its own, for narrow windows."""
    heads, cells = quality_rows(results)
    cut = heads.index("out of domain") + 1 if heads else 0
    return [
        _table(f"Held-out response NLL, nats a token: {_seeds(results)}", heads[:cut], [row[:cut] for row in cells]),
        _table("By set", [*heads[:1], *heads[cut:]], [[*row[:1], *row[cut:]] for row in cells]),
        *([_table("Benchmarks", *benchmark_rows(results))] if benchmark_rows(results)[0] else []),
        _table(f"Bytes a client and round, and in all{_target(results)}", *cost_rows(results)),
        _table("Seconds a round, all clients", *seconds_rows(results)),
    ]


def markdown(results: Record, command: str) -> str:
    """Both tables, the search's scores and what failed, as a page."""
    parts = [
        f"# {results['name']}",
        f"`{command}`, with the file that lies beside this one, repeats it.",
        f"Held-out response NLL in nats a token, lower is better; {_seeds(results)}. A method whose clients end with "
        'models of their own is the mean of these; "own domain" is each on its own.',
        _markdown(*quality_rows(results)),
        f"Bytes are lengths of real payloads: up and down a client and round, total of all clients and rounds"
        f"{_target(results)}.",
        _markdown(*cost_rows(results)),
        "Seconds a round, all clients; `decode` is reading and applying at both ends.",
        _markdown(*seconds_rows(results)),
    ]
    if benchmark_rows(results)[0]:
        parts.append(
            "The embedded suite's benchmarks; the standard error is that of the questions (first row, one seed):"
        )
        parts.append(_markdown(*benchmark_rows(results)))
    searched = [row for row in results["rows"] if row["search"]]
    if searched:
        seeds = ", ".join(map(str, results["grid_seeds"]))
        parts.append(f"Search (final NLL, every client's model on its own domain; seed {seeds}); the best was taken:")
        points = list(dict.fromkeys(point for row in searched for point in row["search"]))
        scores = [[row["label"], *(number(row["search"].get(point)) for point in points)] for row in searched]
        parts.append(_markdown(["method", *(short(point) for point in points)], scores))
    failed = [(row["label"], failure) for row in results["rows"] for failure in row["failed"]]
    if failed:
        lines = [f"- {label}, seed {entry['seed']}: {last_line(entry['reason'])}" for label, entry in failed]
        parts.append("\n".join(["Failed:", "", *lines]))
    return "\n\n".join(parts) + "\n"


def as_csv(results: Record) -> str:
    """One line a row, all figures with mean and standard deviation."""
    rows = ordered(results)
    stream = io.StringIO()
    sets = list(rows[0]["by_set"]) if rows else []
    spreads = ["in_domain", "own", "out_of_domain", "bytes_up", "bytes_down", "bytes_to_target"]
    phases = list(rows[0]["seconds"]) if rows else []
    heads = ["method", "setting", "runs", "rounds"]
    heads += [
        f"{name}_{kind}" for name in [*spreads, *sets, *(f"seconds_{p}" for p in phases)] for kind in ("mean", "sd")
    ]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        found = [row[name] for name in spreads] + [row["by_set"][name] for name in sets]
        found += [row["seconds"][phase] for phase in phases]
        cells = [value for entry in found for value in ((entry["mean"], entry["sd"]) if entry else ("", ""))]
        writer.writerow([row["label"], setting(row["point"]), row["runs"], row["rounds"], *cells])
    return stream.getvalue()


def setting(point: Record | None) -> str:
    """A grid point for people.

    >>> setting({"training.learning_rate": 0.001, "server_optimizer.learning_rate": 2.0})
    'learning_rate 0.001, server_optimizer.learning_rate 2.0'
    """
    return ", ".join(f"{_key(key)} {value}" for key, value in (point or {}).items())


def short(point: str) -> str:
    """The name of a grid point without the tables that its keys lie in.

    >>> short("training.learning_rate=0.001")
    'learning_rate=0.001'
    """
    return ",".join(_key(part.partition("=")[0]) + "=" + part.partition("=")[2] for part in point.split(","))


def _key(key: str) -> str:
    # Without its table; but clients and server both have a learning rate.
    return key if key.startswith("server_optimizer.") else key.rpartition(".")[2]


def number(value: float | None) -> str:
    """A figure with three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def spread(found: Record | None) -> str:
    """Mean and standard deviation.

    >>> spread({"mean": 2.5, "sd": 0.0123, "n": 3})
    '2.500 ± 0.012'
    """
    if found is None:
        return "-"
    return number(found["mean"]) + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def mib(count: float) -> str:
    """Bytes in MiB, with as many decimals as matter."""
    value = count / MIB
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.01 else "0"


def _figure(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3f}" if unit == "nats" else f"{value:.1f}"


def _own(row: Record) -> bool:
    return bool(row["personal"]) and row["clients"] > 1


def _table(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _seeds(results: Record) -> str:
    seeds = results["seeds"]
    counted = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"mean ± standard deviation over {counted}" if len(seeds) > 1 else counted


def _target(results: Record) -> str:
    target = results["target"]
    if target is None:
        return ""
    return f"; target: in-domain {target:.3f}, 90 % of the best method's gain"


def last_line(text: str) -> str:
    """What a message or a traceback comes down to."""
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"

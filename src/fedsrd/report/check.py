"""What `fedsrd check` shows: problems first, then data, one example, and the plan."""

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedsrd.planning.links import duration
from fedsrd.report.plan import plan_tables
from fedsrd.report.screen import Screen, styled

Record = dict[str, Any]
GIB = 1 << 30
SHOWN = 1200
"""Characters of one stretch of an example; longer ones are shown without their middle."""
OPEN, CLOSE = "[[", "]]"
"""Around what is trained on, where there are no colours."""


def show(console: Screen, found: Record) -> None:
    """Prints all of it."""
    for line in problems(found):
        console.print(line, soft_wrap=True)
    if any(row["examples"] is not None for row in found.get("sets", ())):
        console.print()
        console.print(data_table(found))
        if any(row["tokens"] for row in found["sets"]):
            console.print(data_note(found))
    if found.get("example"):
        console.print()
        colour = console.color_system is not None and not console.no_color
        console.print(example(found["example"], colour=colour), soft_wrap=True)
    if found.get("plan"):
        console.print()
        console.print(*plan_tables(found["plan"]), sep="\n")
    for line in machine_lines(found):
        console.print(line)


def problems(found: Record) -> list[RenderableType]:
    """Errors, warnings, or that there are none."""
    lines: list[RenderableType] = [styled("bold red", "error", f"    {text}") for text in found["errors"]]
    lines += [styled("bold yellow", "warning", f"  {text}") for text in found["warnings"]]
    if not found["errors"]:
        count = len(found["warnings"])
        rest = "" if not count else f", {count} warning{'s' if count > 1 else ''}"
        lines.append(styled("bold green", "ready", f"    {found['recipe']} can be run{rest}"))
    return lines


def data_table(found: Record) -> Table:
    """A row a set."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    heads = ("client", "examples", "median", "95 %", "longest", "prompt\ncut", "response\ncut", "repeats", "shared")
    for head in heads:
        table.add_column(head, justify="left" if head == "client" else "right", no_wrap=True)
    before = False
    for row in found["sets"]:
        tokens = row["tokens"]
        if row["held_out"] and not before:
            table.add_section()
            table.add_row(styled("italic", "held out"))
            before = True
        table.add_row(
            f" {row['name']}" if row["held_out"] else row["name"],
            "?" if row["examples"] is None else f"{row['examples']:,}",
            *(("", "", "") if tokens is None else (f"{tokens[key]:,}" for key in ("median", "high", "longest"))),
            *(("", "") if tokens is None else (_share(tokens, key) for key in ("prompts_cut", "responses_cut"))),
            "" if row["repeats"] is None else f"{row['repeats']:,}",
            "" if row["examples"] is None else f"{max(row['shared'].values(), default=0):,}",
        )
    return table


def _share(tokens: Record, key: str) -> str:
    share = tokens[key] / tokens["measured"]
    return "0" if not share else f"{max(share, 0.001):.1%}"


def data_note(found: Record) -> str:
    """What the figures are of."""
    tokens = [row["tokens"]["measured"] for row in found["sets"] if row["tokens"]]
    counts = [row["examples"] for row in found["sets"] if row["tokens"]]
    whole = "all examples" if tokens == counts else f"{found['rows']:,} examples a set, drawn at random (--rows)"
    cut = "" if not found["plan"] else f" of which training.max_length = {found['plan']['setting']['length']} are kept"
    return (
        f"Tokens of prompt and response together{cut}; of {whole}. Repeats: examples that the set has already. "
        "Shared: those that the other set with the most in common has too."
    )


def example(found: Record, *, colour: bool) -> Text:
    """One example with what is trained on marked."""
    counted = sum(part["tokens"] for part in found["parts"] if part["trained"])
    every = sum(part["tokens"] for part in found["parts"])
    how = "in green" if colour else f"in {OPEN} {CLOSE}"
    text = styled(
        "bold",
        f"An example of {found['name']}",
        f", as the model gets it: {every:,} tokens, trained on the {counted:,} {how}\n",
    )
    for part in found["parts"]:
        shown = _middle_out(part["text"])
        if not part["trained"]:
            text.append(shown, "dim" if colour else "")
        elif colour:
            text.append(shown, "bold green")
        else:
            text.append(f"{OPEN}{shown}{CLOSE}")
    return text


def _middle_out(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def machine_lines(found: Record) -> list[RenderableType]:
    """What this machine has for it, how long training takes here, and what privacy takes."""
    lines: list[RenderableType] = []
    if memory := found.get("memory"):
        has = "" if memory["has"] is None else f", {memory['has'] / GIB:.1f} GiB"
        lines.append(f"Training here ({memory['device']}{has}): about {memory['total'] / GIB:.1f} GiB.")
    if training := found.get("training"):
        each = training["seconds_a_client_and_round"]
        lines.append(
            f"Time here: about {duration(each)} a client and round ({training['tokens_a_client_and_round']:,} tokens), "
            f"{duration(training['seconds_in_one_process'])} for the whole run in one process; from a trial "
            "of this device's speed, so half or twice as much is no surprise."
        )
    lines += [
        f"Privacy of {row['name']}'s examples: a noise multiplier of {row['noise_multiplier']:.3g}."
        for row in found.get("privacy") or ()
    ]
    return lines

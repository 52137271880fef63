"""fedsrd init: a first recipe for one's own data."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.check import ROWS, look
from fedsrd.cli.common import app, fail
from fedsrd.cli.common import console as console_of

FILE = Path("federation.toml")
SMALLEST = "embedded:smollm2-135m"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write; an existing one is left alone.")] = FILE,
    model: Annotated[str | None, typer.Option("--model", help=f"A Hugging Face id, a folder, or {SMALLEST}.")] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME=DATA", help="A client and its file, folder or data set; one or more."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="NAME=DATA", help="A set that quality is measured on; may be repeated."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="ROLE=NAME,...",
            help="Such as instruction=ask,response=reply, where names do not tell.",
        ),
    ] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="Where to train; default: what is here.")] = None,
    method: Annotated[str, typer.Option("--method", help="How updates become one.")] = "fedsrd",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10**6, help="Of the federation.")] = 20,
    rank: Annotated[int, typer.Option("--rank", min=1, max=10**5, help="The adapter's rank.")] = 16,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", min=1e-3, max=1e6, help="Differential privacy of examples, for the whole run."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, also at a terminal.")] = False,
) -> None:
    """Write a first recipe for your own data: asks for what is missing, looks at the data, picks settings that fit.

    Then checks it (`fedsrd check`) and says how to go on.
    """
    _refuse(file)
    asks = not yes and _at_a_terminal()
    if not asks:
        lacking = [flag for flag, given in (("--model ID", model), ("--site NAME=DATA", sites)) if not given]
        if lacking:
            example = "fedsrd init --model embedded:smollm2-135m --site ward-a=a.jsonl --site ward-b=b.jsonl"
            fail(f"init: {' and '.join(lacking)} missing, and there is nobody to ask; such as\n  {example}", 2)
    named = [_named(text, "--site") for text in sites or []]
    held = [_named(text, "--held-out") for text in held_out or []]
    roles = None if columns is None else dict(_named(part, "--columns") for part in columns.split(","))
    if not model:
        model = str(typer.prompt("Model: a Hugging Face id, a folder, or the small embedded one", default=SMALLEST))
    if not named:
        named = _ask_for_sites()

    from fedsrd import recipe as recipes
    from fedsrd.planning import draft as drafts

    drafted = drafts.Draft(
        name=file.stem if NAME.fullmatch(file.stem) else "federation",
        model=model,
        clients=[_source(name, where, roles, asks) for name, where in named],
        held_out=[_source(name, where, roles, asks) for name, where in held],
        method=method,
        rounds=rounds,
        rank=rank,
        epsilon=epsilon,
        device="cpu" if gpu is False else "auto",
    )
    # What is no recipe (a method that nobody knows, two clients of one name) is not written.
    recipes.parse(drafts.tree(drafted), "what init was given")
    _write(file, drafts.text(_fitted(drafted, gpu)))
    console = console_of()
    console.print(f"Wrote {file}", soft_wrap=True)
    from fedsrd.report.check import show

    found = look(file, [], ROWS, "10Mbit", "50Mbit")
    show(console, found)
    console.print()
    if found["errors"]:
        console.print(f"Mend {file}, and check it again:\n  fedsrd check {_quoted(file)}", soft_wrap=True)
        raise typer.Exit(1)
    then = f"  fedsrd check {_quoted(file)}   # again, after a change\n  fedsrd run {_quoted(file)}"
    console.print(f"Next:\n{then}", soft_wrap=True)


def _refuse(file: Path) -> None:
    """Before anybody is asked anything."""
    if file.exists() or file.is_symlink():
        fail(f"{file} is there already, and is left as it is; name another file: fedsrd init OTHER.toml", 2)
    if not file.parent.is_dir():
        fail(f"{file}: there is no folder {file.parent}; make it, or name another file", 2)
    if file.suffix != ".toml":
        fail(f"{file}: expected a name that ends in .toml", 2)


def _at_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _named(text: str, option: str) -> tuple[str, str]:
    name, equals, rest = text.strip().partition("=")
    if not equals or not name.strip() or not rest.strip():
        what = "ROLE=NAME, such as response=reply" if option == "--columns" else "NAME=DATA, such as ward-a=a.jsonl"
        fail(f"{option} {text!r}: expected {what}", 2)
    if option != "--columns" and not NAME.fullmatch(name.strip()):
        fail(f"{option} {text!r}: a name has letters, digits, dots, dashes and underscores, at most 64", 2)
    return name.strip(), rest.strip()


def _ask_for_sites() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    while True:
        place = len(found) + 1
        default = f"site-{place}" if place <= 2 else ""
        end = "" if place <= 2 else " (empty: no more)"
        name = str(typer.prompt(f"Name of client {place}{end}", default=default, show_default=bool(default))).strip()
        if not name:
            return found
        where = str(typer.prompt(f"Data of {name}: a file, a folder or a Hugging Face data set")).strip()
        found.append(_named(f"{name}={where}", "--site"))


def _source(name: str, where: str, roles: dict[str, str] | None, asks: bool) -> Any:
    """A site's data and its columns: those that are given, or known by their names, or asked for."""
    from fedsrd.data.local import first_row
    from fedsrd.errors import DataError
    from fedsrd.federation.session import EMBEDDED
    from fedsrd.planning import draft as drafts
    from fedsrd.text import foreign

    if roles is not None or where.startswith(EMBEDDED):
        return drafts.Source(name, where, {} if where.startswith(EMBEDDED) else roles or {})
    try:
        row = first_row(where)
    except DataError as error:
        return fail(f"{name}: {error}", 2)
    found = drafts.columns_for(row)
    if found is None:
        there = ", ".join(foreign(column, 40) for column in list(row)[:20])
        if not asks:
            fail(
                f"{name}: {where} has the columns {there}: which of them are what? Say it with "
                "--columns instruction=NAME,response=NAME (or messages=NAME)",
                2,
            )
        typer.echo(f"{name} has the columns: {there}")
        found = {"instruction": _ask_column("what is asked", row), "response": _ask_column("the answer", row)}
    return drafts.Source(name, where, found)


def _ask_column(what: str, row: dict[str, Any]) -> str:
    while True:
        column = str(typer.prompt(f"Which column is {what}?")).strip()
        if column in row:
            return column
        typer.echo("There is no such column.")


def _fitted(draft: Any, gpu: bool | None) -> Any:
    """The draft with settings that fit the model, the data and this machine; what nobody can know stays as it is, and
    the check says why.
    """
    import torch

    from fedsrd.data.examples import Example
    from fedsrd.data.prompt import style_of
    from fedsrd.errors import FedSRDError
    from fedsrd.federation.session import load_examples
    from fedsrd.planning import architecture, examples, machine
    from fedsrd.planning import draft as drafts
    from fedsrd.planning.check import Notes
    from fedsrd.recipe import DataSection
    from fedsrd.training import loading

    kind = "gpu" if gpu or (gpu is None and torch.cuda.is_available()) else "cpu"
    draft = replace(draft, steps=drafts.STEPS[kind], packing=kind == "gpu" and draft.epsilon is None)
    try:
        tokenizer = loading.load_tokenizer(draft.model)
        style = style_of(tokenizer)
        high, most = 0, 0
        for client in draft.clients:
            data = DataSection(source=client.source, columns=dict(client.columns))
            read: list[Example] = load_examples(data, client.name, Notes())
            chosen = examples.sample(read, 500, 0, client.name)
            high = max(high, examples.lengths(chosen, style, tokenizer, drafts.LENGTHS[-1]).high)
            most = max(most, len(read))
        length = drafts.length_for(high)
        sizes = architecture.architecture(draft.model, draft.rank, "all-linear")
    except FedSRDError:
        return draft
    device = torch.device("cuda" if kind == "gpu" and torch.cuda.is_available() else "cpu")
    # A GPU that is elsewhere has as much memory as nobody knows.
    has = None if kind == "gpu" and device.type == "cpu" else machine.memory_of(device)
    private = draft.epsilon is not None
    return replace(
        draft,
        prompt=style,
        max_length=length,
        rate=5e-4 if sizes.parameters < drafts.SMALL else 1e-4,
        delta=drafts.delta_for(most),
        fit=drafts.fit(sizes, has, length, kind, private=private, four_bits=kind == "gpu"),
    )


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        _refuse(file)
    except (OSError, UnicodeEncodeError) as error:
        fail(f"{file}: cannot be written: {getattr(error, 'strerror', None) or error}", 2)


def _quoted(file: Path) -> str:
    import shlex

    return shlex.quote(str(file))

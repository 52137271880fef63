"""fedsrd recipes: those that come with the package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import app, fail

recipes_app = typer.Typer(help="The recipes that come with fedsrd: list, show and copy them.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
Name = Annotated[str, typer.Argument(help="Such as models/qwen3-1.7b; fedsrd recipes list has them all.")]


@recipes_app.command("list")
def recipes_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recipes that come with fedsrd, and the command that runs each."""
    from fedsrd import shipped

    found = shipped.described()
    if as_json:
        typer.echo(json.dumps([vars(one) for one in found], indent=2))
        return
    from rich import box
    from rich.table import Table

    from fedsrd.report.screen import Screen

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("command", no_wrap=True)
    table.add_column("what it is")
    for one in found:
        table.add_row(one.name, f"fedsrd {one.command}", one.about)
    Screen().print(table)


@recipes_app.command("show")
def recipes_show(name: Name) -> None:
    """Print a recipe."""
    from fedsrd import shipped

    typer.echo(_known(name, shipped.text), nl=False)


@recipes_app.command("copy")
def recipes_copy(
    name: Name,
    destination: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: the recipe's own name, in this folder.")
    ] = None,
) -> None:
    """Copy a recipe to change it; what it extends is written into it."""
    text = _known(name, _whole)
    file = destination or Path(f"{name.removesuffix('.toml').rpartition('/')[2]}.toml")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        fail(f"{file} is there already; name another file, or move it", 2)
    typer.echo(f"{file}: change it, then fedsrd check {file}")


def _whole(name: str) -> str:
    """A recipe that stands alone: as it is, or, where it extends another, with that one's keys in it."""
    import tomllib

    from fedsrd import shipped

    own = shipped.text(name)
    if "extends" not in tomllib.loads(own):
        return own
    import tomli_w

    from fedsrd.recipe import read

    return f"{shipped.comment(own)}\n{tomli_w.dumps(read(shipped.file(name))[0])}"


def _known(name: str, what: Callable[[str], str]) -> str:
    from fedsrd import shipped
    from fedsrd.suggest import did_you_mean

    try:
        return what(name)
    except KeyError:
        hint = did_you_mean(name, shipped.names(), "did you mean {}? ")
        return str(fail(f"no recipe {name!r} comes with fedsrd; {hint}`fedsrd recipes list` has them all", 2))

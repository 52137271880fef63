"""fedsrd data: the data sets that come with the embedded default."""

import json
from typing import Annotated

import typer

from fedsrd.cli.common import app

data_app = typer.Typer(help="The data sets that come with the embedded default.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("list")
def data_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the embedded data sets with count, licence, version and citation (fetches them the first time)."""
    from rich import box
    from rich.table import Table

    from fedsrd.data import catalog
    from fedsrd.report.screen import Screen, styled

    rows = catalog.describe(lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=vars))
        return
    console = Screen()
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("name", "domain", "role", "train", "test", "version"):
        table.add_column(column, justify="right" if column in ("train", "test") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "domain", "role", "train", "test", "version")))
    console.print(table)
    for row in rows:
        console.print(styled("bold", str(row["name"]), f"  {row['source']}; licence: {row['licence']}"))
        console.print(f"  {row['citation']}\n  {row['note']}", highlight=False, soft_wrap=True)

"""Commands that show: report, inspect and the embedded data sets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import app, fail

data_app = typer.Typer(help="The data sets that come with the embedded default.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Runs and comparisons.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file; default report.html in the folder, or here for several.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write one HTML file about runs and comparisons; it needs no network. Each run writes its own at its end."""
    from fedsrd.report.page.write import report as write

    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    file = write(folders, out or default)
    typer.echo(str(file))
    if show:
        import webbrowser

        webbrowser.open(file.resolve().as_uri())


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A payload: an uplink, a downlink or a start.")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Its run, for the shapes; default: the run that the file lies in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a payload holds (`fedsrd run --keep-payloads` writes them)."""
    from rich.console import Console

    from fedsrd.federation.resume import shape_table
    from fedsrd.report.payload import payload_tables
    from fedsrd.runs.folder import RunFolder
    from fedsrd.wire.inspect import inspect_payload

    try:
        payload = file.read_bytes()
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}", 2)
    folders = [run_folder] if run_folder else file.resolve().parents
    home = next((RunFolder(folder) for folder in folders if RunFolder(folder).recipe_file.is_file()), None)
    if home is None and run_folder is not None:
        fail(f"{run_folder}: holds no run (it has no recipe.toml)", 2)
    found = inspect_payload(payload, shape_table(home) if home else None)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if home is None and found["kind"] != "start":
        typer.echo("Header only: name the run with --run DIR to see the elements.", err=True)
    Console().print(*payload_tables(found, str(file)))


@data_app.command("list")
def data_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the embedded data sets with count, licence, version and citation (fetches them the first time)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedsrd.data import catalog

    rows = catalog.describe(lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=vars))
        return
    console = Console()
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("name", "domain", "role", "train", "test", "version"):
        table.add_column(column, justify="right" if column in ("train", "test") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "domain", "role", "train", "test", "version")))
    console.print(table)
    for row in rows:
        console.print(f"[bold]{row['name']}[/bold]  {row['source']}; licence: {row['licence']}", highlight=False)
        console.print(f"  {row['citation']}\n  {row['note']}", highlight=False, soft_wrap=True)

"""fedsrd inspect: what a payload holds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import app, fail


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A payload: an uplink, a downlink or a start.")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Its run, for the shapes; default: the run that the file lies in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a payload holds (`fedsrd run --keep-payloads` writes them)."""
    from fedsrd.federation.resume import tensor_table
    from fedsrd.report.payload import payload_tables
    from fedsrd.report.screen import Screen
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
    found = inspect_payload(payload, tensor_table(home) if home else None)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if home is None and found["kind"] != "start":
        typer.echo("Header only: name the run with --run DIR to see the elements.", err=True)
    Screen().print(*payload_tables(found, str(file)))

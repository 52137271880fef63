"""fedsrd report: one HTML file about runs and comparisons."""

from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import app, check_out
from fedsrd.text import printable


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
    if out is not None:
        check_out(out)
    file = write(folders, out or default)
    typer.echo(printable(str(file)))
    if show:
        import webbrowser

        webbrowser.open(file.resolve().as_uri())

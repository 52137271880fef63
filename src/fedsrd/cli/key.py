"""fedsrd key: a site's signing key."""

from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import app


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; it must not exist.")],
    show: Annotated[
        bool, typer.Option("--show", help="Make nothing: print the public half of the key in FILE.")
    ] = False,
) -> None:
    """Make a site's signing key, and print its public half for the server's recipe."""
    from fedsrd.federation.remote import identity

    made = identity.load(file) if show else identity.create(file)
    typer.echo(made.public)
    if not show:
        typer.echo(f"{file} holds the private half: it stays at this site.", err=True)

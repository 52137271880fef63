"""fedsrd site: what a site lets out, and what left it."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedsrd.cli.common import Json, app, console

site_app = typer.Typer(help="A site's own rules, and the log of what left it.", no_args_is_help=True)
app.add_typer(site_app, name="site")


@site_app.command("log")
def site_log(
    folder: Annotated[
        Path | None, typer.Argument(help="The site's state folder; default $FEDSRD_STATE or ~/.local/state/fedsrd.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain and show sums only.")] = False,
    after: Annotated[
        str | None, typer.Option("--after", help="Hash of a line that you noted before: it must still be there.")
    ] = None,
    last: Annotated[int, typer.Option("--last", min=1, max=1_000_000, help="How many lines are shown.")] = 50,
    as_json: Json = False,
) -> None:
    """Show every message that left a site, sums by run, and whether the log's chain is whole (else exit code 1)."""
    import re

    from fedsrd.errors import RunFolderError
    from fedsrd.federation.remote.audit import Audit
    from fedsrd.federation.remote.site import state_of
    from fedsrd.report import site as report

    if after is not None and not re.fullmatch("[0-9a-f]{64}", after):
        raise typer.BadParameter("expected 64 hexadecimal digits, as this command prints them", param_hint="--after")
    state = state_of({}) if folder is None else Path(os.path.expanduser(folder))
    audit = Audit(state / "audit" if (state / "audit").is_dir() else state)
    if not audit.files():
        raise RunFolderError(f"{state}: no audit log; expected a site's state folder, or the audit folder in it")
    found = report.summarise(audit.entries(), last, after)
    screen = console(as_json)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "lines": [] if verify else [entry.line.model_dump() for entry in found.lines],
                    "runs": {name: vars(run) | {"rounds": sorted(run.rounds)} for name, run in found.runs.items()},
                    "chain": {
                        "whole": not found.problems,
                        "problems": found.problems,
                        "lines": found.count,
                        "hash": found.hash,
                    },
                },
                indent=2,
            )
        )
    else:
        if not verify:
            screen.print(report.lines_table(found.lines))
        screen.print(report.runs_table(found.runs))
    for problem in found.problems:
        screen.print(f"BROKEN: {problem}", soft_wrap=True)
    if torn := audit.torn():
        screen.print(f"A crash cut the last line short ({torn} bytes); its message was not sent.", soft_wrap=True)
    if not found.problems:
        screen.print(f"The chain is whole: {found.count:,} lines; the last one's hash is {found.hash}", soft_wrap=True)
    screen.print(report.PROVES, soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)


@site_app.command("rules")
def site_rules(file: Annotated[Path, typer.Argument(help="The site's TOML file.")]) -> None:
    """Check a site's rules, and say them in plain words."""
    from fedsrd.federation.remote import rules
    from fedsrd.report.site import in_words

    found, digest = rules.load(Path(os.path.expanduser(file)))
    screen = console()
    for line in in_words(found):
        screen.print(f"- {line}", soft_wrap=True)
    screen.print(f"SHA-256 of the file, as the audit log has it: {digest}", soft_wrap=True)

"""fedsrd run: one federation, in this process."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import (
    INTERRUPTED,
    Json,
    Plugins,
    Quiet,
    Track,
    app,
    check_out,
    check_trackers,
    fail,
    load_plugins,
    tracked,
)
from fedsrd.cli.common import console as console_of


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in TOML; without one, the embedded default.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as training.steps=8.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; default runs/NAME-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out after its last round.")] = False,
    keep_payloads: Annotated[
        bool, typer.Option("--keep-payloads", help="Keep every payload under DIR/payloads, for `fedsrd inspect`.")
    ] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
    plugins: Plugins = None,
) -> None:
    """Run a federation in this process: every client trains in turn, only bytes pass between them."""
    load_plugins(plugins)

    from fedsrd import recipe as recipes
    from fedsrd.report.screen import styled
    from fedsrd.report.terminal import now
    from fedsrd.runs.folder import RunFolder

    console = console_of(as_json, quiet)
    check_trackers(track)
    if resume and out is None:
        fail("--resume: which run? Name its folder with --out", 2)
    if out is not None:
        check_out(out)
    own = resume and recipe is None and not overrides and out is not None
    folder = RunFolder(out) if out is not None else None
    chosen = folder.stored_recipe() if own and folder is not None else recipes.load(recipe, overrides or [])
    if folder is None:
        folder = RunFolder(Path("runs") / f"{chosen.name}-{now()}")
    if gone := recipes.dropped(recipe, overrides or []) if not own else []:
        console.print(f"method.name is {chosen.method['name']} now: the recipe's {', '.join(gone)} fell away")
    about = f"{len(chosen.clients)} clients, {chosen.rounds} rounds, {chosen.model.id}; into {folder.path}"
    console.print(styled("bold", chosen.method["name"], f": {about}"))
    try:
        summary = _run(console, chosen, folder, resume, keep_payloads, track or [])
    except KeyboardInterrupt:
        console.print(
            f"\nStopped. Continue after the last complete round with:\n  fedsrd run --resume --out {folder.path}"
        )
        raise SystemExit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"folder": str(folder.path), **summary.plain()}, indent=2))


def _run(console: Any, recipe: Any, folder: Any, resume: bool, keep_payloads: bool, track: list[str]) -> Any:
    from fedsrd.report import terminal
    from fedsrd.report.evaluation import closing_tables

    with tracked(terminal.RunDisplay(console, recipe.rounds), track, folder.path / "tensorboard") as display:
        display.say("Checking folder, data and model")
        from fedsrd.federation import local, setup

        prepared = setup.prepare(recipe, folder, resume=resume, observer=display)
        if track:
            display.begin(recipe, folder.path.name)
        summary = local.run(prepared, display, keep_payloads=keep_payloads)
    for table in closing_tables(folder.records(), summary):
        console.print(table)
    console.print(terminal.totals(summary), highlight=False)
    for line in terminal.privacy(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for adapter in folder.adapters():
        console.print(f"Adapter: {adapter}  (PeftModel.from_pretrained(base_model, {str(adapter)!r}))", highlight=False)
    console.print(f"Talk to it: fedsrd chat {folder.path}", highlight=False, soft_wrap=True)
    from fedsrd.report.page.write import report

    file = report([folder.path], folder.path / "report.html")
    console.print(f"Report: {file}", highlight=False, soft_wrap=True)
    return summary

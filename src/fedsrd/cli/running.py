"""Commands that train: run and compare."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import INTERRUPTED, Json, Plugins, Quiet, Track, app, fail, listed, load_plugins, number
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
    from fedsrd.report.terminal import now
    from fedsrd.runs.folder import RunFolder

    console = console_of(as_json, quiet)
    _check_trackers(track)
    if resume and out is None:
        fail("--resume: which run? Name its folder with --out", 2)
    own = resume and recipe is None and not overrides and out is not None
    folder = RunFolder(out) if out is not None else None
    chosen = folder.stored_recipe() if own and folder is not None else recipes.load(recipe, overrides or [])
    if folder is None:
        folder = RunFolder(Path("runs") / f"{chosen.name}-{now()}")
    console.print(
        f"[bold]{chosen.method['name']}[/bold]: {len(chosen.clients)} clients, {chosen.rounds} rounds, "
        f"{chosen.model.id}; into {folder.path}",
        highlight=False,
    )
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

    with _tracked(terminal.RunDisplay(console, recipe.rounds), track, folder.path / "tensorboard") as display:
        display.say("Checking folder, data and model")
        from fedsrd.federation import local, setup

        prepared = setup.prepare(recipe, folder, resume=resume, observer=display)
        if track:
            display.begin(recipe, folder.path.name)
        summary = local.run(prepared, display, keep_payloads=keep_payloads)
    for table in closing_tables(folder.records(), summary):
        console.print(table)
    console.print(terminal.totals(summary), highlight=False)
    for adapter in folder.adapters():
        console.print(f"Adapter: {adapter}  (PeftModel.from_pretrained(base_model, {str(adapter)!r}))", highlight=False)
    from fedsrd.report.page.write import report

    file = report([folder.path], folder.path / "report.html")
    console.print(f"Report: {file}", highlight=False, soft_wrap=True)
    return summary


def _check_trackers(track: list[str] | None) -> None:
    if track:
        from fedsrd.report import tracking

        tracking.check(track)


def _tracked(display: Any, track: list[str], folder: Path) -> Any:
    if not track:
        return display
    from fedsrd.report.tracking import Tracked

    return Tracked(display, track, folder)


@app.command()
def compare(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, with or without [compare]; without one, the embedded default.")
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option("--methods", help="Methods or labels, with commas, or all; default: what [compare] lists."),
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="With commas, such as 0,1,2.")] = None,
    rates: Annotated[
        str | None,
        typer.Option("--learning-rates", help="With commas; each method is compared at its own best of these."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default comparisons/NAME-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue in --out, round by round.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
    plugins: Plugins = None,
) -> None:
    """Run many methods on equal terms and end with one table: quality, bytes, seconds."""
    load_plugins(plugins)
    from fedsrd.compare import plan
    from fedsrd.report.terminal import now

    _check_trackers(track)
    if resume and out is None:
        fail("--resume: which comparison? Name its folder with --out", 2)
    path = recipe
    if path is None and resume and out is not None and (out / "comparison.toml").is_file():
        path = out / "comparison.toml"
    comparison = plan.load(
        path,
        chosen=None if chosen is None else listed(chosen),
        seeds=None if seeds is None else [number(seed, int, "--seeds", "0,1,2") for seed in listed(seeds)],
        rates=None if rates is None else [number(r, float, "--learning-rates", "2e-4,5e-4") for r in listed(rates)],
        overrides=overrides or [],
    )
    folder = out or Path("comparisons") / f"{comparison.name}-{now()}"
    console = console_of(as_json, quiet)
    try:
        results = _compare(console, comparison, folder, resume, track or [])
    except KeyboardInterrupt:
        console.print(f"\nStopped. Continue in the middle of the round with:\n  fedsrd compare --resume --out {folder}")
        raise SystemExit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **results.plain()}, indent=2))


def _compare(console: Any, comparison: Any, folder: Path, resume: bool, track: list[str]) -> Any:
    from fedsrd.report.progress import CompareDisplay

    console.print(f"{len(comparison.variants)} methods, {comparison.count()} runs; into {folder}", highlight=False)
    with _tracked(CompareDisplay(console), track, folder / "tensorboard") as display:
        display.say("Loading")
        from fedsrd.compare import run as comparing
        from fedsrd.report import outcome

        comparing.run(comparison, folder, display, resume=resume)
        display.say("Drawing")
        results = outcome.write(comparison, folder)
    outcome.show(console, results, folder)
    if not any(row.runs for row in results.rows):
        fail(f"every run failed; the reasons are in {folder}/runs", 1)
    return results

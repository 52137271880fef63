"""fedsrd compare: many methods on equal terms."""

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
    listed,
    load_plugins,
    number,
    tracked,
)
from fedsrd.cli.common import console as console_of


@app.command()
def compare(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, with or without a compare table; without one, the embedded recipe.")
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option("--methods", help="Methods or labels, with commas, or all; default: those of the compare table."),
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

    check_trackers(track)
    if resume and out is None:
        fail("--resume: which comparison? Name its folder with --out", 2)
    if out is not None:
        check_out(out)
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
    with tracked(CompareDisplay(console), track, folder / "tensorboard") as display:
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

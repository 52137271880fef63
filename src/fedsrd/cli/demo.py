"""fedsrd demo: what a newcomer sees first. FedAvg and FedSRD on the same data, and one client alone."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import INTERRUPTED, Json, Quiet, app, check_out, fail
from fedsrd.cli.common import console as console_of


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Its folder; default comparisons/demo-DATE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the demo in --out.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser at the end.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Four clinics fine-tune one real LLM together, on this machine's CPU: FedSRD beside FedAvg, in four minutes."""
    from fedsrd import shipped
    from fedsrd.compare import plan
    from fedsrd.report.terminal import now

    if resume and out is None:
        fail("--resume: which demo? Name its folder with --out", 2)
    if out is not None:
        check_out(out)
    folder = out or Path("comparisons") / f"demo-{now()}"
    console = console_of(as_json, quiet)
    comparison = plan.load(shipped.FOLDER / "demo.toml")
    try:
        results, report = _demo(console, comparison, folder, resume)
    except KeyboardInterrupt:
        console.print(f"\nStopped. Continue in the middle of the round with:\n  fedsrd demo --resume --out {folder}")
        raise SystemExit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **results.plain()}, indent=2))
    if show:
        typer.launch(str(report))


def _demo(console: Any, comparison: Any, folder: Path, resume: bool) -> Any:
    from fedsrd.report import demo as told

    for line in told.INTRODUCTION:
        console.print(line)
    with told.DemoDisplay(console) as display:
        display.say("Loading libraries")
        from fedsrd.compare import run as comparing
        from fedsrd.report import outcome

        comparing.run(comparison, folder, display, resume=resume)
        display.say("Drawing the report")
        results = outcome.write(comparison, folder)
    outcome.show_failures(console, results)
    if not all(row.runs for row in results.rows):
        fail(f"a run failed; the reasons are in {folder}/runs", 1)
    told.show(console, results, told.answers(comparison, folder), folder)
    return results, folder / "report.html"

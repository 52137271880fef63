"""fedsrd evaluate: quality of runs, adapters and models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import INTERRUPTED, Json, Quiet, app, check_out, fail, listed
from fedsrd.cli.common import console as console_of


@app.command()
def evaluate(
    targets: Annotated[list[str], typer.Argument(help="Runs, adapters or models: folders, or Hugging Face ids.")],
    suite: Annotated[str, typer.Option("--suite", help="embedded, in-domain, out-of-domain or paper.")] = "embedded",
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Benchmarks of the paper with commas, such as gsm8k,medqa.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most examples of each part.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; an evaluation that was stopped in it goes on.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=PATH", help="Local questions of a benchmark, in place of the hub's."),
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run the programs that the model writes (HumanEval, MBPP), confined.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat-template", help="Put the paper's prompts into the model's chat template.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="chat, alpaca or plain, for the embedded suite; default: the run's.")
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Evaluate the base model too (cached).")] = True,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at a time.")] = 8,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of base weights; default: the run's.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure quality: the embedded suite in minutes on a CPU, or the paper's ten benchmarks through lm-eval."""
    from fedsrd.evaluation import local_files, subjects, suites
    from fedsrd.report.terminal import now

    for option, value, known in (
        ("--suite", suite, suites.SUITES),
        ("--dtype", dtype, ("bfloat16", "float16", "float32")),
        ("--prompt", prompt, ("chat", "alpaca", "plain")),
    ):
        if value is not None and value not in known:
            fail(f"{option} {value!r}: expected one of {', '.join(known)}", 2)
    if out is not None:
        check_out(out)
    names = None if tasks is None else tuple(listed(tasks))
    benchmarks = suites.chosen(suite, None if names is None else list(names))  # type: ignore[arg-type]
    found = subjects.resolve(targets)
    if base:
        found = subjects.with_bases(found)
    files = local_files.parse(data or [])
    folder = out or Path("evaluations") / f"{'tasks' if names else suite}-{now()}"
    console = console_of(as_json, quiet)
    what = "the embedded suite" if names is None and suite == "embedded" else ", ".join(b.title for b in benchmarks)
    console.print(f"{', '.join(s.name for s in found)} on {what}; into {folder}", highlight=False)
    request = {
        "suite": suite,
        "tasks": names,
        "limit": limit,
        "files": files,
        "run_code": run_code,
        "chat": chat,
        "prompt": prompt,
        "batch_size": batch,
    }
    try:
        scores = _evaluate(console, request, found, folder, device, dtype)
    except KeyboardInterrupt:
        console.print(f"\nStopped. Repeat the command with --out {folder} to go on.")
        raise SystemExit(INTERRUPTED) from None
    if as_json:
        typer.echo((folder / "scores.json").read_text(encoding="utf-8"), nl=False)
        return
    from fedsrd.report.evaluation import scores_table

    console.print(scores_table(scores))
    console.print(f"{folder}/scores.md, scores.json, and each one's eval.json (lm-eval's format)", highlight=False)


def _evaluate(console: Any, request: dict[str, Any], found: Any, folder: Path, device: str, dtype: str | None) -> Any:
    from fedsrd.report.evaluation import EvaluationDisplay

    with EvaluationDisplay(console) as display:
        from fedsrd.evaluation import evaluate as evaluating
        from fedsrd.evaluation.model_loader import ModelLoader

        return evaluating.run(
            evaluating.Request(**request), found, folder, ModelLoader(device, dtype, display.say), display
        )

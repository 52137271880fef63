"""The command line: parse, call, print. Heavy libraries are imported inside the commands that need them."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd import __version__
from fedsrd.errors import FedSRDError

app = typer.Typer(
    name="fedsrd",
    help="Fine-tune LLMs together on data that never leaves its owner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The data sets that come with the embedded default.", no_args_is_help=True)
app.add_typer(data_app, name="data")

INTERRUPTED = 130
MEMORY_ADVICE = (
    "Use smaller batches (--set training.batch_size=1 --set training.accumulation=8; --batch 1), shorter sequences "
    '(training.max_length), model.gradient_checkpointing = true, or a 4-bit base (model.quantization = "nf4"); '
    "`fedsrd plan` estimates what they need."
)
PLUGIN_HELP = "A Python file or module with methods of your own; it is executed."


def main() -> None:
    """Runs the command line; the user's mistakes end in one message and a non-zero exit code."""
    # Tokenizers forks no threads of its own in our processes; its warning about it helps nobody.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except FedSRDError as error:
        _fail(str(error), error.exit_code)
    except MemoryError as error:
        _fail(f"out of memory: {error}\n{MEMORY_ADVICE}", 1)
    except RuntimeError as error:
        # torch's own class for it is a RuntimeError, and torch is not to be imported for this.
        if type(error).__name__ not in ("OutOfMemoryError", "AcceleratorError"):
            raise
        _fail(f"the accelerator is out of memory: {str(error).splitlines()[0]}\n{MEMORY_ADVICE}", 1)
    except BrokenPipeError:
        # The reader went away (`fedsrd data list | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"fedsrd {__version__}")
        raise typer.Exit


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
    plugins: Annotated[list[str] | None, typer.Option("--import", help=PLUGIN_HELP)] = None,
) -> None:
    """Run a federation in this process: every client trains in turn, only bytes pass between them."""
    from rich.console import Console

    _import(plugins)

    from fedsrd import recipe as recipes
    from fedsrd.federation.runfolder import RunFolder
    from fedsrd.report.terminal import now

    console = Console()
    if resume and out is None:
        _fail("--resume: which run? Name its folder with --out", 2)
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
        _run(console, chosen, folder, resume, keep_payloads)
    except KeyboardInterrupt:
        console.print(
            f"\nStopped. Continue after the last complete round with:\n  fedsrd run --resume --out {folder.path}"
        )
        raise SystemExit(INTERRUPTED) from None


def _run(console: Any, recipe: Any, folder: Any, resume: bool, keep_payloads: bool) -> None:
    from fedsrd.report import terminal
    from fedsrd.report.evaluation import benchmarks_table

    with terminal.RunDisplay(console, recipe.rounds) as display:
        display.say("Checking folder, data and model")
        from fedsrd.federation import local, setup

        prepared = setup.prepare(recipe, folder, resume=resume, observer=display)
        summary = local.run(prepared, display, keep_payloads=keep_payloads)
    records = [json.loads(line) for line in (folder.path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    console.print(terminal.rounds_table(records))
    if summary["final"] is not None:
        console.print(terminal.quality_table(summary))
    if (table := benchmarks_table(summary)) is not None:
        console.print(table)
    console.print(terminal.totals(summary), highlight=False)
    for adapter in folder.adapters():
        console.print(f"Adapter: {adapter}  (PeftModel.from_pretrained(base_model, {str(adapter)!r}))", highlight=False)


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
    plugins: Annotated[list[str] | None, typer.Option("--import", help=PLUGIN_HELP)] = None,
) -> None:
    """Run many methods on equal terms and end with one table: quality, bytes, seconds."""
    from rich.console import Console

    _import(plugins)
    from fedsrd.compare import plan
    from fedsrd.report.terminal import now

    if resume and out is None:
        _fail("--resume: which comparison? Name its folder with --out", 2)
    path = recipe
    if path is None and resume and out is not None and (out / "comparison.toml").is_file():
        path = out / "comparison.toml"
    comparison = plan.load(
        path,
        chosen=None if chosen is None else _listed(chosen),
        seeds=None if seeds is None else [_number(seed, int, "--seeds", "0,1,2") for seed in _listed(seeds)],
        rates=None if rates is None else [_number(r, float, "--learning-rates", "2e-4,5e-4") for r in _listed(rates)],
        overrides=overrides or [],
    )
    folder = out or Path("comparisons") / f"{comparison.name}-{now()}"
    console = Console()
    try:
        _compare(console, comparison, folder, resume)
    except KeyboardInterrupt:
        console.print(f"\nStopped. Continue in the middle of the round with:\n  fedsrd compare --resume --out {folder}")
        raise SystemExit(INTERRUPTED) from None


def _compare(console: Any, comparison: Any, folder: Path, resume: bool) -> None:
    from fedsrd.report.progress import CompareDisplay

    console.print(f"{len(comparison.variants)} methods, {comparison.count()} runs; into {folder}", highlight=False)
    with CompareDisplay(console) as display:
        display.say("Loading")
        from fedsrd.compare import run as comparing
        from fedsrd.report import outcome

        comparing.run(comparison, folder, display, resume=resume)
        display.say("Drawing")
        results = outcome.write(comparison, folder)
    outcome.show(console, results, folder)
    if not any(row["runs"] for row in results["rows"]):
        _fail(f"every run failed; the reasons are in {folder}/runs", 1)


@app.command()
def plan(
    model: Annotated[str, typer.Option("--model", help="A Hugging Face id, a folder, or a config.json.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="The adapter's rank.")] = 64,
    targets: Annotated[str, typer.Option("--targets", help="all-linear, or modules with commas.")] = "all-linear",
    chosen: Annotated[str | None, typer.Option("--method", help="With commas; default: all that send.")] = None,
    clients: Annotated[int, typer.Option("--clients", min=1, help="That take part in a round.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 50,
    up: Annotated[str, typer.Option("--up", help="A client's uplink.")] = "10Mbit",
    down: Annotated[str, typer.Option("--down", help="A client's downlink.")] = "50Mbit",
    density: Annotated[
        float | None,
        typer.Option(
            "--density", min=0.0001, max=1.0, help="Share that an adaptive ratio keeps; default: the paper's."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the base: float32, bfloat16, float16, int4.")] = "bfloat16",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at a time.")] = 8,
    length: Annotated[int, typer.Option("--max-length", min=8, help="Tokens of each.")] = 512,
    checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a federation would cost: bytes, time on the links, memory. Reads a config, no weights."""
    from fedsrd.planning import architecture, forecast, links, memory

    if dtype not in memory.BYTES:
        _fail(f"--dtype {dtype!r}: expected one of {', '.join(memory.BYTES)}", 2)
    setting = forecast.Setting(
        clients,
        rounds,
        links.bits_per_second(up, "--up"),
        links.bits_per_second(down, "--down"),
        dtype,
        batch,
        length,
        checkpointing,
        forecast.PAPERS_DENSITY if density is None else density,
    )
    wanted = targets if targets == "all-linear" else _listed(targets)
    found = forecast.forecast(
        architecture.architecture(model, rank, wanted), setting, None if chosen is None else _listed(chosen)
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    from fedsrd.report.plan import plan_tables

    Console().print(*plan_tables(found))


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
            _fail(f"{option} {value!r}: expected one of {', '.join(known)}", 2)
    names = None if tasks is None else tuple(_listed(tasks))
    benchmarks = suites.chosen(suite, None if names is None else list(names))  # type: ignore[arg-type]
    found = subjects.resolve(targets)
    if base:
        found = subjects.with_bases(found)
    files = local_files.parse(data or [])
    folder = out or Path("evaluations") / f"{'tasks' if names else suite}-{now()}"
    console = _console(as_json)
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
        from fedsrd.evaluation.lending import Lending

        return evaluating.run(
            evaluating.Request(**request), found, folder, Lending(device, dtype, display.say), display
        )


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

    from fedsrd.federation.runfolder import RunFolder
    from fedsrd.report.payload import payload_tables
    from fedsrd.wire.inspect import inspect_payload

    try:
        payload = file.read_bytes()
    except OSError as error:
        _fail(f"{file}: cannot be read: {error.strerror}", 2)
    folders = [run_folder] if run_folder else file.resolve().parents
    home = next((RunFolder(folder) for folder in folders if RunFolder(folder).recipe_file.is_file()), None)
    if home is None and run_folder is not None:
        _fail(f"{run_folder}: holds no run (it has no recipe.toml)", 2)
    found = inspect_payload(payload, home.shape_table() if home else None)
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


def _console(as_json: bool) -> Any:
    """Where people read: standard output, or standard error where that is for JSON."""
    from rich.console import Console

    return Console(stderr=as_json)


def _import(plugins: list[str] | None) -> None:
    from fedsrd import plugins as loading

    for plugin in plugins or []:
        loading.load(plugin)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str, kind: Any, option: str, example: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return _fail(f"{option}: {text!r} is not a number; expected such as {example}", 2)


def _fail(message: str, code: int) -> Any:
    typer.echo(f"fedsrd: {message}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()

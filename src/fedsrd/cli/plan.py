"""fedsrd plan: what a federation would cost."""

import json
from typing import Annotated

import typer

from fedsrd.cli.common import app, fail, listed


@app.command()
def plan(
    model: Annotated[str, typer.Option("--model", help="A Hugging Face id, a folder, or a config.json.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="The adapter's rank.")] = 64,
    targets: Annotated[str, typer.Option("--targets", help="all-linear, or modules with commas.")] = "all-linear",
    chosen: Annotated[str | None, typer.Option("--method", help="With commas; default: all that send.")] = None,
    clients: Annotated[int, typer.Option("--clients", min=1, max=10**6, help="That take part in a round.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10**6)] = 50,
    up: Annotated[str, typer.Option("--up", help="A client's uplink.")] = "10Mbit",
    down: Annotated[str, typer.Option("--down", help="A client's downlink.")] = "50Mbit",
    density: Annotated[
        float | None,
        typer.Option(
            "--density", min=0.0001, max=1.0, help="Share that an adaptive ratio keeps; default: the paper's."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the base: float32, bfloat16, float16, int4.")] = "bfloat16",
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Sequences at a time.")] = 8,
    length: Annotated[int, typer.Option("--max-length", min=8, max=1 << 20, help="Tokens of each.")] = 512,
    checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, max=10**9, help="Of the smallest client: what differential privacy costs."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", min=1e-3, max=1e6, help="With --examples: beside 1, 3 and 8.")
    ] = None,
    delta: Annotated[float, typer.Option("--delta", min=1e-15, max=0.1, help="Chance beyond epsilon.")] = 1e-5,
    steps: Annotated[int, typer.Option("--steps", min=1, max=10**6, help="Of a round, for --examples.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a federation would cost: bytes, time on the links, memory. Reads a config, no weights."""
    from fedsrd.planning import architecture, forecast, links, memory

    if dtype not in memory.BYTES:
        fail(f"--dtype {dtype!r}: expected one of {', '.join(memory.BYTES)}", 2)
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
    if epsilon is not None and examples is None:
        fail("--epsilon: of how many examples? The noise follows from --examples, the smallest client's number", 2)
    private = None
    if examples is not None:
        from fedsrd.planning import privacy

        private = privacy.noise(privacy.Budget(examples, batch, steps, rounds, delta, epsilon))
    wanted = targets if targets == "all-linear" else listed(targets)
    found = forecast.forecast(
        architecture.architecture(model, rank, wanted), setting, None if chosen is None else listed(chosen)
    )
    if private is not None:
        found["privacy"] = private
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from fedsrd.report.plan import plan_tables
    from fedsrd.report.screen import Screen

    Screen().print(*plan_tables(found))

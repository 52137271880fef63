"""fedsrd plan: what a federation would cost."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import app, fail, listed, recipes_of

ALL = "all"


@app.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe: its own run is planned. Or name a --model.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A Hugging Face id, a folder, or a config.json.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="The adapter's rank; default: 64.")] = None,
    targets: Annotated[
        str | None, typer.Option("--targets", help="all-linear (the default), or modules with commas.")
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option("--method", help="With commas, or all that send; default: the recipe's, or all."),
    ] = None,
    clients: Annotated[
        int | None, typer.Option("--clients", min=1, max=10**6, help="That take part in a round; default: 4.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=10**6, help="Default: 50.")] = None,
    up: Annotated[str, typer.Option("--up", help="A client's uplink.")] = "10Mbit",
    down: Annotated[str, typer.Option("--down", help="A client's downlink.")] = "50Mbit",
    density: Annotated[
        float | None,
        typer.Option(
            "--density", min=0.0001, max=1.0, help="Share that an adaptive ratio keeps; default: the paper's."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the base: float32, bfloat16 (the default), float16, int4.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, max=4096, help="Sequences at a time; default: 8.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--max-length", min=8, max=1 << 20, help="Tokens of each; default: 512.")
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing", help="Compute activations again: less memory."
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, max=10**9, help="Of the smallest client: what differential privacy costs."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", min=1e-3, max=1e6, help="With --examples: beside 1, 3 and 8.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", min=1e-15, max=0.1, help="Chance beyond epsilon; default: 1e-5.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=10**6, help="Of a round, for --examples; default: 10.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a federation would cost: bytes, time on the links, memory. Reads a config, no weights.

    With a recipe everything comes from it, and options change it; one with [compare] has a row a variant. Without a
    recipe, name a --model.
    """
    if recipe is None and model is None:
        fail("plan: of what? Name a recipe (fedsrd plan mine.toml), or a model (fedsrd plan --model ID)", 2)
    if recipe is None and overrides:
        fail("--set: it changes a recipe's keys; name a recipe, or use the options (fedsrd plan --help)", 2)
    from fedsrd.planning import links, memory

    if dtype is not None and dtype not in memory.BYTES:
        fail(f"--dtype {dtype!r}: expected one of {', '.join(memory.BYTES)}", 2)
    if epsilon is not None and examples is None:
        fail("--epsilon: of how many examples? The noise follows from --examples, the smallest client's number", 2)
    speeds = links.bits_per_second(up, "--up"), links.bits_per_second(down, "--down")
    given = {
        "model.id": model,
        "lora.rank": rank,
        "lora.targets": targets if targets in (None, "all-linear") else listed(targets or ""),
        "rounds": rounds,
        "training.batch_size": batch,
        "training.max_length": length,
        "training.steps": steps,
        "model.gradient_checkpointing": checkpointing,
    }
    options = {key: value for key, value in given.items() if value is not None}
    names = None if chosen in (None, ALL) else listed(chosen or "")
    found = (
        _of_model(options, clients, dtype, speeds, density, names)
        if recipe is None
        else _of_recipe(recipe, [*(overrides or []), *_as_overrides(options, dtype)], clients, speeds, density, chosen)
    )
    if examples is not None:
        from fedsrd.planning import privacy

        found["privacy"] = privacy.noise(_budget(found, examples, delta, epsilon))
    del found["step"]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from fedsrd.report.plan import plan_tables
    from fedsrd.report.screen import Screen

    Screen().print(*plan_tables(found), sep="\n")


def _of_model(
    options: dict[str, Any],
    clients: int | None,
    dtype: str | None,
    speeds: tuple[float, float],
    density: float | None,
    names: list[str] | None,
) -> dict[str, Any]:
    from fedsrd.planning import architecture, forecast

    usual = forecast.Setting()
    setting = forecast.Setting(
        clients or usual.clients,
        options.get("rounds", usual.rounds),
        *speeds,
        dtype or usual.dtype,
        options.get("training.batch_size", usual.batch),
        options.get("training.max_length", usual.length),
        options.get("model.gradient_checkpointing", usual.checkpointing),
        forecast.PAPERS_DENSITY if density is None else density,
    )
    sizes = architecture.architecture(
        options["model.id"], options.get("lora.rank", 64), options.get("lora.targets", "all-linear")
    )
    return {
        **forecast.forecast(sizes, setting, names),
        "step": {"batch": setting.batch, "steps": options.get("training.steps", 10)},
    }


def _of_recipe(
    path: Path,
    overrides: list[str],
    clients: int | None,
    speeds: tuple[float, float],
    density: float | None,
    chosen: str | None,
) -> dict[str, Any]:
    from fedsrd.planning import forecast, recipe_plan

    runs = recipes_of(path, overrides)
    recipe = next(iter(runs.values()))
    setting = recipe_plan.setting_of(
        recipe, recipe_plan.Links(*speeds), forecast.PAPERS_DENSITY if density is None else density, clients
    )
    sizes = recipe_plan.architecture_of(recipe)
    if chosen is None:
        found = recipe_plan.plan(runs, sizes, setting)
    else:
        found = forecast.forecast(sizes, setting, None if chosen == ALL else listed(chosen))
    training, asked = recipe.training, recipe.privacy.examples
    step = {"batch": training.batch_size * training.accumulation, "steps": training.steps}
    return {**found, "step": step if asked is None else {**step, "delta": asked.delta, "epsilon": asked.epsilon}}


def _budget(found: dict[str, Any], examples: int, delta: float | None, epsilon: float | None) -> Any:
    """What differential privacy is asked for: options first, then the recipe's own."""
    from fedsrd.planning import privacy

    step = found["step"]
    return privacy.Budget(
        examples,
        step["batch"],
        step["steps"],
        found["setting"]["rounds"],
        step.get("delta", 1e-5) if delta is None else delta,
        step.get("epsilon") if epsilon is None else epsilon,
    )


def _as_overrides(options: dict[str, Any], dtype: str | None) -> list[str]:
    """Options as changes of the recipe; JSON's values are TOML's here."""
    changes = dict(options)
    if dtype is not None:
        changes["model.quantization"] = "nf4" if dtype == "int4" else "none"
        if dtype != "int4":
            changes["model.dtype"] = dtype
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]

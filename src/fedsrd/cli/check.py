"""fedsrd check: what is wrong with a recipe, its data in tokens, and its plan, without training."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsrd.cli.common import Plugins, app, load_plugins, recipes_of
from fedsrd.cli.common import console as console_of

ROWS = 1000


@app.command()
def check(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in TOML; without one, the embedded default.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as training.steps=8.")
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, max=10**7, help="Examples of each set that are made into tokens.")
    ] = ROWS,
    example: Annotated[
        bool, typer.Option("--example/--no-example", help="Show one example, with what is trained marked.")
    ] = True,
    up: Annotated[str, typer.Option("--up", help="A client's uplink.")] = "10Mbit",
    down: Annotated[str, typer.Option("--down", help="A client's downlink.")] = "50Mbit",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins: Plugins = None,
) -> None:
    """Check a recipe without training: data, lengths, one example as the model sees it, memory, time, bytes.

    Reads the data, the model's config and its tokenizer, and no weights. Ends with 1 where something keeps it from
    being run. Shown examples are your data: --no-example leaves them out.
    """
    load_plugins(plugins)
    found = look(recipe, overrides or [], rows, up, down, example=example)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        from fedsrd.report.check import show

        show(console_of(), found)
    if found["errors"]:
        raise typer.Exit(1)


def look(
    recipe: Path | None, overrides: list[str], rows: int, up: str, down: str, *, example: bool = True
) -> dict[str, Any]:
    """What `planning.check` finds; of a recipe that cannot be read, the error alone."""
    from fedsrd.errors import RecipeError
    from fedsrd.planning import check as checking
    from fedsrd.planning import forecast, links, recipe_plan

    speeds = recipe_plan.Links(links.bits_per_second(up, "--up"), links.bits_per_second(down, "--down"))
    try:
        runs = recipes_of(recipe, overrides)
    except RecipeError as error:
        return {"recipe": None if recipe is None else str(recipe), "errors": [str(error)], "warnings": []}

    def say(text: str) -> None:
        typer.echo(text, err=True)

    found = checking.check(runs, rows, speeds, forecast.PAPERS_DENSITY, example=example, say=say)
    if len(runs) > 1:
        found["warnings"].append(
            f"{recipe} has a [compare] table: settings are checked of all {len(runs)} variants; data, memory and time "
            f"are those of {next(iter(runs))}"
        )
    return found

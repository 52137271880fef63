"""What all commands share: the application, its exit codes, and how options become values."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedsrd.errors import RunFolderError
from fedsrd.text import foreign, printable

INTERRUPTED = 130
# Options of several commands.
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON; progress goes to standard error.")]
Track = Annotated[
    list[str] | None, typer.Option("--track", help="Live: tensorboard, wandb, mlflow or trackio; may be repeated.")
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--import", help="A Python file or module with methods of your own; it is executed."),
]

ORDER = (
    *("demo", "init", "check", "plan", "run", "compare", "evaluate", "chat", "merge", "report", "inspect"),
    *("recipes", "data", "key", "site"),
)


class _InOrder(TyperGroup):
    """Commands in the order in which people meet them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in ORDER if name in self.commands]


app = typer.Typer(
    cls=_InOrder,
    name="fedsrd",
    help="Fine-tune LLMs together on data that never leaves its owner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def console(as_json: bool = False, quiet: bool = False) -> Any:
    """Where people read: standard output, or standard error where that is for JSON, or nowhere."""
    from fedsrd.report.screen import Screen

    return Screen(stderr=as_json, quiet=quiet)


def load_plugins(plugins: list[str] | None) -> None:
    """Loads methods of the user's own."""
    from fedsrd import plugins as loading

    for plugin in plugins or []:
        loading.load(plugin)


def check_out(out: Path) -> None:
    """Before anything expensive starts.

    Raises:
        RunFolderError: nothing can be made at `out`.
    """
    place = Path(os.path.abspath(out))
    for found in (place, *place.parents):
        try:
            os.stat(found)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunFolderError(f"--out {foreign(out)}: {error.strerror}; choose another folder") from None
        if found != place and not (os.path.isdir(found) and os.access(found, os.W_OK | os.X_OK)):
            raise RunFolderError(f"--out {out}: nothing can be made in {found}; choose another folder")
        return


def listed(text: str) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def number(text: str, kind: Any, option: str, example: str) -> Any:
    """A number of that kind, or the end with a message."""
    try:
        return kind(text)
    except ValueError:
        return fail(f"{option}: {text!r} is not a number; expected such as {example}", 2)


def recipes_of(path: Path | None, overrides: list[str]) -> dict[str, Any]:
    """The recipe of a file, under no label; or of one with a [compare] table one recipe a variant, by label.

    Raises:
        RecipeError: one of them is wrong.
    """
    from fedsrd import recipe as recipes

    tree, where = recipes.read(path, overrides)
    if "compare" not in tree:
        return {"": recipes.parse(tree, where)}
    from fedsrd.compare import plan

    found: dict[str, Any] = {}
    for one in plan.load(path, overrides=overrides).each():
        # Points of a grid differ in what neither bytes nor data depend on, a learning rate.
        found.setdefault(one.label, one.recipe)
    return found


def check_trackers(track: list[str] | None) -> None:
    """Raises RecipeError for a tracker that is unknown or not installed."""
    if track:
        from fedsrd.report import tracking

        tracking.check(track)


def tracked(display: Any, track: list[str], folder: Path) -> Any:
    """The display, with live trackers behind it where some are asked for; `folder` takes TensorBoard's files."""
    if not track:
        return display
    from fedsrd.report.tracking import Tracked

    return Tracked(display, track, folder)


def fail(message: str, code: int) -> Any:
    """Ends with one message."""
    typer.echo(printable(f"fedsrd: {message}"), err=True)
    raise SystemExit(code)

"""The command line: parse, call, print. Heavy libraries are imported inside the commands that need them."""

import os
import sys
import tempfile
import traceback
from typing import Annotated

import typer

from fedsrd import __version__
from fedsrd.cli import chat, check, compare, data, demo, evaluate, init, inspect, key, plan, recipes, report, run, site
from fedsrd.cli.common import app, fail
from fedsrd.errors import FedSRDError
from fedsrd.text import foreign
from fedsrd.threads import wait_briefly

__all__ = [
    "app",
    "chat",
    "check",
    "compare",
    "data",
    "demo",
    "evaluate",
    "init",
    "inspect",
    "key",
    "main",
    "plan",
    "recipes",
    "report",
    "run",
    "site",
]

DEBUG = "FEDSRD_DEBUG"
"""Set in the environment, errors come with their tracebacks, the user's mistakes too."""
MEMORY_ADVICE = (
    "Use smaller batches (--set training.batch_size=1 --set training.accumulation=8; --batch 1), shorter sequences "
    '(training.max_length), model.gradient_checkpointing = true, or a 4-bit base (model.quantization = "nf4"); '
    "`fedsrd plan` estimates what they need."
)


def main() -> None:
    """Runs the command line; the user's mistakes end in one message and a non-zero exit code."""
    # Tokenizers forks no threads of its own in our processes; its warning about it helps nobody.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_briefly()
    try:
        app()
    except BrokenPipeError:
        # The reader went away (`fedsrd data list | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        fail(*_said(error))


def _said(error: Exception) -> tuple[str, int]:
    """What the user is told of an error, and the exit code."""
    if isinstance(error, FedSRDError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return f"out of memory: {error}\n{MEMORY_ADVICE}", 1
    # torch's own class for it is a RuntimeError, and torch is not to be imported for this.
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return f"the accelerator is out of memory: {str(error).splitlines()[0]}\n{MEMORY_ADVICE}", 1
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}", 1
    return _bug(error), 1


def _bug(error: Exception) -> str:
    """One line, and the traceback in a file: it may be of a run of days that nobody wants to repeat for it."""
    text = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {foreign(error)}\nThis is a bug in fedsrd, or in what --import brought"
    try:
        handle, path = tempfile.mkstemp(prefix="fedsrd-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
    except OSError:
        return f"{what}; please report it with this:\n{text}"
    return f"{what}; please report it with the traceback in {path} ({DEBUG}=1 shows it here)"


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"fedsrd {__version__}")
        raise typer.Exit

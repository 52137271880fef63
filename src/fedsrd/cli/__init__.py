"""The command line: parse, call, print. Heavy libraries are imported inside the commands that need them."""

import os
import sys
from typing import Annotated

import typer

from fedsrd import __version__
from fedsrd.cli import compare, data, evaluate, inspect, key, plan, report, run
from fedsrd.cli.common import app, fail
from fedsrd.errors import FedSRDError
from fedsrd.threads import wait_passively

__all__ = ["app", "compare", "data", "evaluate", "inspect", "key", "main", "plan", "report", "run"]

MEMORY_ADVICE = (
    "Use smaller batches (--set training.batch_size=1 --set training.accumulation=8; --batch 1), shorter sequences "
    '(training.max_length), model.gradient_checkpointing = true, or a 4-bit base (model.quantization = "nf4"); '
    "`fedsrd plan` estimates what they need."
)


def main() -> None:
    """Runs the command line; the user's mistakes end in one message and a non-zero exit code."""
    # Tokenizers forks no threads of its own in our processes; its warning about it helps nobody.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_passively()
    try:
        app()
    except FedSRDError as error:
        fail(str(error), error.exit_code)
    except MemoryError as error:
        fail(f"out of memory: {error}\n{MEMORY_ADVICE}", 1)
    except RuntimeError as error:
        # torch's own class for it is a RuntimeError, and torch is not to be imported for this.
        if type(error).__name__ not in ("OutOfMemoryError", "AcceleratorError"):
            raise
        fail(f"the accelerator is out of memory: {str(error).splitlines()[0]}\n{MEMORY_ADVICE}", 1)
    except BrokenPipeError:
        # The reader went away (`fedsrd data list | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"fedsrd {__version__}")
        raise typer.Exit

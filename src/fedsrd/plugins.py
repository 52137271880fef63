"""Methods that lie outside this package: a Python file or module that the user names. It is executed as it is."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from fedsrd.errors import RecipeError
from fedsrd.text import foreign


def load(name: str) -> None:
    """Imports a module by its dotted name, or a file by its path, so that the methods in it register themselves.

    Raises:
        RecipeError: it is not there, or it cannot be imported: the message has the line that failed.
    """
    path = Path(name)
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        if not path.is_file():
            raise RecipeError(f"--import {name}: no such file")
        spec = importlib.util.spec_from_file_location(f"fedsrd_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        if spec.name in sys.modules:
            return
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's file raises is the user's to see, without our stack
        raise RecipeError(f"--import {foreign(name)}: {type(error).__name__}: {error}{_line(error, path)}") from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the user's code it was raised, as far as that is known."""
    if isinstance(error, SyntaxError):
        return ""  # it says so itself
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _importing(frame.filename)]
    own = [frame for frame in frames if Path(frame.filename) == path] or frames
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _importing(filename: str) -> bool:
    return filename.startswith("<frozen") or filename in (__file__, importlib.__file__)

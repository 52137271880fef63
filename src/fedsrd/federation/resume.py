"""What a run's folder continues from: the state of its last complete round, which holds all rounds' records."""

import json
from collections.abc import Callable

from fedsrd.core.tensors import TensorTable
from fedsrd.errors import RunFolderError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, parse_rounds

CONSEQUENCE = "the run cannot be resumed (put a backup of it in its place, or run again into a new folder)"


def restore(
    folder: RunFolder, warn: Callable[[str], None] = lambda _: None
) -> tuple[Checkpoint, list[RoundRecord]] | None:
    """State and records of the last complete round; None when not even the start was complete.

    The records are those that the state holds. `rounds.jsonl` is a copy of them, and whoever continues writes it anew:
    one that is missing or older is told to `warn`; in one that says something else there may be something to lose.

    Args:
        folder: the run's.
        warn: told what is not as it should be and does no harm.

    Raises:
        RunFolderError: the state is missing though rounds were complete, is damaged, or belongs to another recipe than
            recipe.toml; or rounds.jsonl is not what the run recorded.
    """
    if not folder.state.is_file():
        if folder.rounds.exists():
            raise RunFolderError(f"{folder.state} is missing, {CONSEQUENCE}")
        return None
    checkpoint = Checkpoint.load(folder.state, CONSEQUENCE)
    if checkpoint.recipe != folder.recipe_digest():
        raise RunFolderError(
            f"{folder.state} belongs to another recipe or seed than {folder.recipe_file}; put both back as they were "
            "when the run stopped, or from one backup"
        )
    _check_copy(folder, checkpoint.records, warn)
    return checkpoint, parse_rounds(checkpoint.records, str(folder.state))


def _check_copy(folder: RunFolder, recorded: str, warn: Callable[[str], None]) -> None:
    try:
        found = folder.rounds.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        found = []
    except (OSError, UnicodeDecodeError) as error:
        raise _changed(folder, f"it cannot be read as UTF-8 text: {error}") from None
    wanted = recorded.splitlines()
    for number, (line, right) in enumerate(zip(found, wanted, strict=False), 1):
        # The last line of all is written again when the clients have been brought to the last version.
        if line != right and not (number == len(wanted) and _unsettled(line) == _unsettled(right)):
            raise _changed(folder, f"line {number} is another")
    # A line more is what a crash may leave of a round that was not complete.
    if len(found) > len(wanted) + 1:
        raise _changed(folder, f"it has {len(found)} lines, the state is of {len(wanted)}")
    if len(found) < len(wanted) - 1:
        warn(f"{folder.rounds} has {len(found)} of the {len(wanted)} lines that the run recorded: it is written anew")


def _unsettled(line: str) -> object:
    """A record without the bytes that the end of the run adds."""
    try:
        tree = json.loads(line)
        return {key: repr(value) for key, value in tree.items() if key != "bytes_down"}
    except (ValueError, AttributeError, RecursionError):
        return line


def _changed(folder: RunFolder, what: str) -> RunFolderError:
    return RunFolderError(
        f"{folder.rounds} is not what the run recorded ({what}); the state has all records: move the file away and "
        "resume, and it is written anew"
    )


def tensor_table(folder: RunFolder) -> TensorTable | None:
    """The tensors of the run's state, None before its first commit.

    Raises:
        RunFolderError: the state is damaged.
    """
    if not folder.state.is_file():
        return None
    return TensorTable.of(Checkpoint.load(folder.state, "its tensors are not known").state.tensors)

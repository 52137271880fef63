"""What a run's folder continues from: the state and the records of its last complete round."""

from fedsrd.core.tensors import TensorTable
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord


def restore(folder: RunFolder) -> tuple[Checkpoint, list[RoundRecord]] | None:
    """State and records of the last complete round; None when not even the start was complete.

    `rounds.jsonl` may be one round ahead after a crash; what is ahead is dropped.

    Raises:
        RunFolderError: the state or the records are damaged.
    """
    if not folder.state.is_file():
        return None
    checkpoint = Checkpoint.load(folder.state, "the run cannot be resumed")
    return checkpoint, [record for record in folder.records() if record.round <= checkpoint.state.version]


def tensor_table(folder: RunFolder) -> TensorTable | None:
    """The tensors of the run's state, None before its first commit. Raises RunFolderError as `restore`."""
    restored = restore(folder)
    return None if restored is None else TensorTable.of(restored[0].state.tensors)

"""A client's state on its own disk: a client process may live for one message only."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from fedsrd.core.tensors import GlobalState
from fedsrd.errors import FedSRDError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import NOTHING, Client, ClientMemory
from fedsrd.federation.remote.log import Log
from fedsrd.files import write_atomically


class Replica:
    """The state of one client in one federation, in one file that is replaced as a whole.

    A client that is killed at any moment finds the state before or after the round, never between: whatever it does
    again, it does from the version that the file says.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, state: Path, federation: str, name: str) -> None:
        self.folder = state / federation / name

    @property
    def _file(self) -> Path:
        return self.folder / "replica.safetensors"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes of this client out; waits until they have ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    def state(self) -> GlobalState:
        """The replica that is held; version -1 where there is none, or nothing whole."""
        held = self._read()
        return NOTHING if held is None else held.state

    def load(self, client: Client) -> None:
        """Gives the client what is held; nothing: it stays empty."""
        held = self._read()
        if held is not None:
            rounds, pending = held.counted, held.clients.get("pending")
            if pending is None and "pending" in rounds:
                pending = {}
            memory = ClientMemory(
                held.clients.get("kept", {}), rounds.get("kept", 0), pending, rounds.get("pending", 0)
            )
            client.restore(held.state, memory)

    def save(self, client: Client) -> None:
        """Replaces what is held. What a method keeps outlives a replica that was given up."""
        memory = client.memory
        clients, rounds = {"kept": memory.kept}, {"kept": memory.round}
        if memory.pending is not None:
            clients["pending"], rounds["pending"] = memory.pending, memory.pending_round
        write_atomically(self._file, Checkpoint(client.state, clients=clients, counted=rounds).to_bytes())

    def _read(self) -> Checkpoint | None:
        if not self._file.is_file():
            return None
        try:
            return Checkpoint.load(self._file, "the server sends the whole state instead")
        except FedSRDError as error:
            Log(self.folder / "log.jsonl").write("damaged", reason=str(error))
            return None

    def remove(self) -> None:
        """Leaves nothing behind; the last client takes the federation's folder, too."""
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

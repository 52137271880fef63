"""A client's state on its own disk. Flower starts a new process for every message, and forgets a node that restarts."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from fedsrd.errors import FedSRDError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import Client
from fedsrd.files import write_atomically
from fedsrd.flower.log import Log


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

    def read(self) -> Checkpoint | None:
        """What is held; None where there is nothing, or nothing whole."""
        if not self._file.is_file():
            return None
        try:
            return Checkpoint.load(self._file, "the server sends the whole state instead")
        except (FedSRDError, KeyError, ValueError) as error:
            Log(self.folder / "log.jsonl").write("damaged", reason=str(error))
            return None

    def load(self, client: Client) -> None:
        """Gives the client what is held; nothing: it stays empty."""
        held = self.read()
        if held is not None:
            client.restore(
                held.factors, held.version, held.base, held.clients.get("memory"), held.clients.get("pending")
            )

    def save(self, client: Client) -> None:
        """Replaces what is held."""
        if client.version < 0:
            self._file.unlink(missing_ok=True)
            return
        memories = {"memory": client.memory, "pending": client.pending}
        held = Checkpoint(client.factors, client.version, client.base, clients=memories)
        write_atomically(self._file, held.to_bytes())

    def remove(self) -> None:
        """Leaves nothing behind; the last client takes the federation's folder, too."""
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

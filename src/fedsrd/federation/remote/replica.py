"""A client's state on its own disk: a client process may live for one message only."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from fedsrd.core.tensors import GlobalState
from fedsrd.errors import FederationError, RunFolderError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import NOTHING, Client, ClientMemory
from fedsrd.federation.remote.log import Log
from fedsrd.files import own_folder, refuse_link, sweep, write_atomically


class Replica:
    """The state of one client in one federation, in one file that is replaced as a whole and is for nobody else.

    A client that is killed at any moment finds the state before or after the round, never between: whatever it does
    again, it does from the version that the file says.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, state: Path, federation: str, name: str) -> None:
        self.folder = state / federation / name
        self._state = state

    @property
    def _file(self) -> Path:
        return self.folder / "replica.safetensors"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes of this client out; waits until they have ended.

        Raises:
            FederationError: the folder cannot be made or locked, or a link is in its place or the lock's.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            own_folder(own_folder(self.folder.parent, private=True) / self.folder.name, private=True)
            refuse_link(self.folder / ".lock")
            lock.acquire()
        except (OSError, RunFolderError) as error:
            raise FederationError(f"the client's state cannot be kept: {self._said(error)}") from None
        try:
            sweep(self.folder)
            yield
        finally:
            lock.release()

    def state(self) -> GlobalState:
        """The replica that is held; version -1 where there is none, or nothing whole."""
        try:
            held = self._read()
        except RunFolderError:
            return NOTHING  # told by whoever loads it
        return NOTHING if held is None else held.state

    def load(self, client: Client) -> str | None:
        """Gives the client what is held; nothing: it stays empty.

        A damaged file is put aside, under another name. The replica comes back from the server, but what a method keeps
        at the client does not, so that the next updates may differ: the reason is given, for the server to be told,
        and None where nothing is damaged.
        """
        try:
            held = self._read()
        except RunFolderError as error:
            aside = self._file.with_suffix(".damaged")
            Log(self.folder / "log.jsonl").write("damaged", reason=str(error), kept=aside.name)
            with contextlib.suppress(OSError):
                self._file.replace(aside)
            return self._said(error)
        if held is not None:
            rounds, pending = held.counted, held.clients.get("pending")
            if pending is None and "pending" in rounds:
                pending = {}
            memory = ClientMemory(
                held.clients.get("kept", {}), rounds.get("kept", 0), pending, rounds.get("pending", 0)
            )
            client.restore(held.state, memory)
        return None

    def save(self, client: Client) -> None:
        """Replaces what is held. What a method keeps outlives a replica that was given up.

        Raises:
            FederationError: it cannot be written; what was held stays.
        """
        memory = client.memory
        clients, rounds = {"kept": memory.kept}, {"kept": memory.round}
        if memory.pending is not None:
            clients["pending"], rounds["pending"] = memory.pending, memory.pending_round
        content = Checkpoint(client.state, clients=clients, counted=rounds).to_bytes()
        try:
            write_atomically(self._file, content)
        except OSError as error:
            raise FederationError(f"the client's state cannot be written: {self._said(error)}") from None

    def _read(self) -> Checkpoint | None:
        if not self._file.is_file():
            return None
        return Checkpoint.load(self._file, "the server sends the whole state, and what the method kept here is lost")

    def _said(self, error: Exception) -> str:
        # The server is told, and where a site keeps its state is none of its business.
        return str(error).replace(f"{self._state}{os.sep}", "")

    def remove(self) -> None:
        """Leaves nothing behind; the last client takes the federation's folder, too."""
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

"""A client's sessions of secure aggregation: what it answers, what it refuses, and what it must not forget."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from fedsrd.errors import RunFolderError, SecureAggregationError
from fedsrd.federation.messages import TrainTask
from fedsrd.federation.secure_messages import Opening, Phase, Roster, Sign, Survivors, Verify
from fedsrd.files import refuse_link, write_atomically
from fedsrd.privacy.packed import Words
from fedsrd.privacy.secure import Client, Inbox
from fedsrd.privacy.secure.session import Message


class Store(Protocol):
    """Where a session is kept between two messages."""

    def load(self) -> bytes | None:
        """What was saved last."""

    def save(self, content: bytes) -> None:
        """Replaces it, before anything that follows from it is sent."""


class Sums(Protocol):
    """The sums of all runs that a site has helped to unmask (`remote.unmasked`)."""

    def check(self, origin: str, names: Collection[str]) -> None:
        """Raises SecureAggregationError where an update of this origin was in a sum of other clients."""

    def note(self, origin: str, names: Collection[str]) -> None:
        """The same, and remembers this one."""


class InMemory:
    """A store that ends with the process."""

    def __init__(self) -> None:
        self._content: bytes | None = None

    def load(self) -> bytes | None:
        """What was saved last."""
        return self._content

    def save(self, content: bytes) -> None:
        """Replaces it."""
        self._content = content


class OnDisk:
    """A store in one file for nobody but its owner.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """What was saved last.

        Raises:
            SecureAggregationError: it cannot be read.
        """
        try:
            refuse_link(self._path)
            return self._path.read_bytes() if self._path.exists() else None
        except (OSError, RunFolderError) as error:
            raise SecureAggregationError(f"the session of secure aggregation cannot be read: {error}") from None

    def save(self, content: bytes) -> None:
        """Replaces it.

        Raises:
            SecureAggregationError: it cannot be written.
        """
        try:
            write_atomically(self._path, content, private=True)
        except OSError as error:
            raise SecureAggregationError(f"the session of secure aggregation cannot be kept: {error}") from None


class SecureClient:
    """A client's side of all sessions of a run.

    One session at a time; a new one takes the place of one in which nothing was revealed. Who has revealed in a round
    takes part in no other session of it, nor of an earlier round: a server that feigns failure would learn the sums of
    two sets of clients, and their difference. Across runs `sums` keeps that rule, for updates that would be the same.

    Args:
        name: the client's.
        store: of its sessions.
        sign: with the site's long-lived key; None where it has none.
        verify: knows the other sites' public keys; None where it knows none: then the server is trusted to pass on the
            clients' own keys.
        sums: of all the client's runs; None where runs are the user's own.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        sign: Sign | None = None,
        verify: Verify | None = None,
        sums: Sums | None = None,
    ) -> None:
        self._name = name
        self._store = store
        self._sign = sign
        self._verify = verify
        self._sums = sums

    def answer(self, federation: str, round_number: int, phase: Phase, body: bytes) -> bytes:
        """The answer to a phase's question, once what follows from it is kept.

        Raises:
            SecureAggregationError: the question breaks the protocol, or the rule above.
        """
        if phase == "keys":
            return self._open(federation, round_number, Opening.read(body))
        client = self._held(round_number)
        answer: bytes
        if phase == "shares":
            answer = client.share(Roster.read(body).keys, self._verify).write()
        elif phase == "confirm":
            if self._sign is None:
                raise SecureAggregationError("this client has no key to confirm with")
            survivors = Survivors.read(body).survivors
            answer = client.confirm(survivors, self._sign).write()
            if self._sums is not None:
                self._sums.check(self._read().origin, survivors)
        else:
            asked = Survivors.read(body)
            answer = client.reveal(asked.survivors, asked.confirmations, self._verify).write()
            if self._sums is not None:
                self._sums.note(self._read().origin, asked.survivors)
        self._save(client)
        return answer

    def mask(self, task: TrainTask, about: str, words: Words, origin: str = "") -> None:
        """Masks an update in place, once that it did is kept.

        Args:
            task: whose update it is.
            about: what the task is about; the session, which all have signed, says the same.
            words: packed integers.
            origin: what the update follows from, where `sums` are kept.

        Raises:
            SecureAggregationError: the task is not what the session was opened for, the inbox does not fit it,
                something was masked in it before, or the same update was in a sum of others than take part.
        """
        client = self._held(task.round)
        if client.session.about != about:
            raise SecureAggregationError(
                "the task has other weights, steps, training or noise than the session that all clients agreed to: "
                "nothing is masked for it"
            )
        inbox = Inbox.read(task.inbox)
        if self._sums is not None:
            # Found here, the round may still go on with others; once all are asked to reveal, it may not.
            self._sums.check(origin, inbox.participants)
        client.mask(inbox, words)
        self._save(client, origin)

    def _open(self, federation: str, round_number: int, opening: Opening) -> bytes:
        session = opening.session
        if (session.federation, session.round) != (federation, round_number):
            raise SecureAggregationError("the session is of another run or round than its message")
        if self._verify is not None and not opening.signed:
            raise SecureAggregationError(
                "a session without signatures, though this site knows the others' keys: every client in the server's "
                "recipe needs its key"
            )
        if opening.signed and self._sign is None:
            raise SecureAggregationError(
                "a session with signatures, and this site has no key; start it with --node-config 'key=\"FILE\"'"
            )
        revealed = self._revealed()
        if session.round <= revealed:
            raise SecureAggregationError(
                f"this client has revealed in round {revealed} already: the same round's session can only be finished, "
                "not begun anew, or the server would learn the difference of two sums"
            )
        client, keys = Client.start(session, self._name, self._sign if opening.signed else None)
        self._save(client)
        return keys.write()

    def close(self) -> None:
        """After the last round: of the sessions, only which round was the last is kept, and no secret."""
        if self._store.load() is not None:
            self._keep(_Kept(revealed=self._revealed()))

    def _held(self, round_number: int) -> Client:
        content = self._read().client
        client = None if not content else Client.from_bytes(content)
        if client is None or client.session.round != round_number:
            raise SecureAggregationError(f"no session of round {round_number} is open at this client")
        return client

    def _revealed(self) -> int:
        """The last round in which something was revealed; 0 for none."""
        return self._read().revealed

    def _read(self) -> "_Kept":
        content = self._store.load()
        return _Kept() if content is None else _Kept.read(content)

    def _save(self, client: Client, origin: str | None = None) -> None:
        held = self._read()
        revealed = max(held.revealed, client.session.round) if client.phase == "revealed" else held.revealed
        origin = held.origin if origin is None else origin
        self._keep(_Kept(revealed=revealed, origin=origin, client=client.to_bytes()))

    def _keep(self, kept: "_Kept") -> None:
        self._store.save(kept.write())


class _Kept(Message):
    """What lies in the store: the last round in which something was revealed, what the masked update followed from, and
    the open session.
    """

    revealed: Annotated[int, Field(ge=0)] = 0
    origin: Annotated[str, Field(max_length=64)] = ""
    client: bytes = b""


def peers_of(tree: object) -> dict[str, str]:
    """The [peers] table of a file: names and public keys.

    Raises:
        ValueError: there is none, or an entry is no public key.
    """
    from fedsrd.recipe import key_bytes

    found = tree.get("peers") if isinstance(tree, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError('no [peers] table; expected lines like ward = "ed25519:..."')
    for name, key in found.items():
        try:
            if not isinstance(key, str):
                raise ValueError("expected text")
            key_bytes(key)
        except ValueError as error:
            raise ValueError(f"peers.{json.dumps(name)[:80]}: {error}") from None
    if len(set(found.values())) < len(found):
        raise ValueError("[peers] has one key under two names; each site has its own")
    return found

"""Rounds whose updates are masked: the server learns their sum, and no update (`privacy.secure`).

A round has five phases: keys, shares, the masked updates (training happens here), confirmations of who is in the sum
where clients sign, and what unmasks it. Before anybody reveals anything the session is written to the journal, so that
a server that was killed goes on with it; nothing else of that round could be summed again.
"""

import base64
import dataclasses
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from fedsrd.errors import FederationError, PayloadError, SecureAggregationError
from fedsrd.errors import TooFewError as TooFewLeftError
from fedsrd.federation.messages import Claims, Failure, TrainTask, Update
from fedsrd.federation.rounds import Answers
from fedsrd.federation.secure_messages import Opening, Phase, Roster, Survivors, Verify, about
from fedsrd.federation.server import Closed
from fedsrd.federation.sum_rounds import SumRounds, failures
from fedsrd.federation.sums import Form
from fedsrd.files import write_atomically
from fedsrd.privacy.secure import Confirmation, Keys, Reveal, Server, Session, Shares
from fedsrd.privacy.secure.session import Message

Answer = TypeVar("Answer", bound=Message)


class SecureEngine(Protocol):
    """What an `Engine` of secure rounds can do besides."""

    def question(
        self, round_number: int, phase: Phase, bodies: Mapping[str, bytes]
    ) -> Iterable[tuple[str, bytes] | Failure]:
        """Asks every client named for its part of a phase; gives the answers as they come, by name; who is silent or
        refuses is a Failure in the end.
        """


class _Entry(BaseModel):
    """What the journal says of one update in the sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: str
    claims: Claims


class _Notes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    asked: int
    signed: bool
    entries: list[_Entry]
    rejected: dict[str, str]
    server: str


@dataclass(frozen=True)
class Journal:
    """The session whose sum is about to be unmasked, on the disk.

    Args:
        path: the file; None keeps nothing, for clients that live and die with the server.
    """

    path: Path | None

    def write(self, notes: _Notes) -> None:
        """Replaces it. Raises FederationError where it cannot be written."""
        if self.path is None:
            return
        try:
            write_atomically(self.path, notes.model_dump_json().encode(), private=True)
        except OSError as error:
            raise FederationError(f"{self.path}: the round's session cannot be kept: {error.strerror}") from None

    def read(self) -> _Notes | None:
        """What it holds. Raises FederationError where that is damaged."""
        if self.path is None or not self.path.exists():
            return None
        try:
            return _Notes.model_validate_json(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise FederationError(
                f"{self.path} is damaged: {str(error).splitlines()[0]}; without it the round that it belongs to cannot "
                "be closed where its clients have revealed. Remove it to ask them for a new session all the same"
            ) from None

    def remove(self) -> None:
        """The round has closed."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass
class SecureRounds(SumRounds):
    """`Rounds` with secure aggregation.

    Args:
        federation: the run, as clients tell it from others.
        threshold: clients that must stay to a round's end.
        keys: public keys of clients by name; where all that are asked have one, they sign.
        verify: whether a name's holder has signed something; None where there are no keys.
        journal: of the session.
    """

    federation: str = ""
    threshold: int = 2
    keys: Mapping[str, str] = field(default_factory=dict)
    verify: Verify | None = None
    journal: Journal = field(default_factory=lambda: Journal(None))
    _confirmed: tuple[Confirmation, ...] = ()
    _secure_seconds: float = 0.0

    def _attempt(self, attempt: int, answers: Answers) -> Closed:
        answers.clear()
        number = self.server.version + 1
        notes = self.journal.read()
        if notes is not None and notes.round == number:
            self.warn(f"round {number}: going on with the session of secure aggregation that was begun")
            self.names()
            return self._finished(notes, answers, fresh=False)
        self.journal.remove()
        tasks = self.tasks(attempt, {})
        try:
            notes = self._masked(tasks, answers)
        except TooFewLeftError as error:
            raise self._lacking(error, answers) from None
        self.journal.write(notes)
        return self._finished(notes, answers, fresh=True)

    def finalize(self) -> dict[str, int]:
        """As `Rounds.finalize`."""
        self.journal.remove()
        return super().finalize()

    def _masked(self, tasks: Mapping[str, TrainTask], answers: Answers) -> _Notes:
        """The first three phases; every client that ends in `answers` as a failure is left out."""
        number, form = self.server.version + 1, self.server.form(len(tasks))
        signed = self.verify is not None and tasks.keys() <= self.keys.keys()
        verify = self.verify if signed else None
        server = Server(self._session(tasks, form), verify)
        opening = Opening(session=server.session, signed=signed).write()
        roster = server.keys(self._ask("keys", dict.fromkeys(tasks, opening), Keys, answers))
        self._refused(server, answers)
        everybody = Roster(keys=roster).write()
        bodies = {keys.name: everybody for keys in roster}
        inboxes = server.shares(self._ask("shares", bodies, Shares, answers))
        self._refused(server, answers)
        ready = {name: inbox.write() for name, inbox in inboxes.items()}
        for name, inbox in ready.items():
            self._count(name, len(inbox))
        for answer in self.engine.ask({n: dataclasses.replace(tasks[n], inbox=body) for n, body in ready.items()}):
            answers[answer.client] = self._added(answer, form, server)
        found = self.sorted(answers)
        if len(found) < self.server.minimum:
            raise self.server.too_few(len(found), failures(answers))
        server.survivors()
        return _Notes(
            round=number,
            asked=len(tasks),
            signed=signed,
            entries=[_Entry(client=update.client, claims=_claims(update)) for update in found],
            rejected={failure.client: failure.reason for failure in failures(answers)},
            server=base64.b64encode(server.to_bytes()).decode(),
        )

    def _added(self, answer: Update | Failure, form: Form, server: Server) -> Update | Failure:
        if isinstance(answer, Failure):
            return answer
        try:
            update, words = self.checked(answer, form)
        except PayloadError as error:
            return Failure(answer.client, self.server.version + 1, str(error))
        if server.masked(answer.client, words):
            return update
        return Failure(answer.client, self.server.version + 1, server.refused[answer.client])

    def _finished(self, notes: _Notes, answers: Answers, *, fresh: bool) -> Closed:
        """The last two phases, with those whose updates are in the sum. Where the session is not `fresh`, somebody may
        have revealed before the server was killed.

        Raises:
            FederationError: too few reveal, after all attempts, or the sum is none of updates. Who has revealed takes
                part in no other session of this round.
        """
        server = Server.from_bytes(base64.b64decode(notes.server), self.verify if notes.signed else None)
        found = [_update(entry, notes.round) for entry in notes.entries]
        rejected = [Failure(name, notes.round, reason) for name, reason in notes.rejected.items()]
        known: list[Update | Failure] = [*found, *rejected]
        answers.update({one.client: one for one in known})
        survivors = server.survivors()
        lost: Answers = {}
        for attempt in range(1, self.participation.attempts + 1):
            lost.clear()
            try:
                self._unmask(server, notes.signed, survivors, lost)
                break
            except TooFewLeftError as error:
                missing = "; ".join(f"{failure.client}: {failure.reason}" for failure in failures(lost))
                if attempt == self.participation.attempts and error.phase == "confirmations" and fresh:
                    # Nobody has revealed anything: another session may take this one's place.
                    self.journal.remove()
                    raise self._lacking(error, lost) from None
                if attempt == self.participation.attempts:
                    raise FederationError(
                        f"round {notes.round}: the masked updates are here, and too few clients help to unmask their "
                        f"sum ({missing or error}); resume the run when they are back: no other session of this round "
                        "can take its place"
                    ) from None
                self.warn(f"round {notes.round}: {error} ({missing}); asking again")
        began = time.perf_counter()
        try:
            total = server.total()
        except SecureAggregationError as error:
            raise FederationError(f"round {notes.round}: {error}") from None
        for name, why in server.refused.items():
            self.warn(f"round {notes.round}: {name}: {why}")
        # "secure": until all had answered their phases, besides the training; across a network that is waiting.
        seconds = {"decode": time.perf_counter() - began, "secure": self._secure_seconds}
        self._secure_seconds = 0.0
        try:
            return self.server.close_sum(found, rejected, total, self.server.form(notes.asked), seconds)
        except FederationError as error:
            if self.journal.path is None:
                raise
            raise FederationError(
                f"{error}; the sites have revealed, and join no other session of this round, so that resuming does not "
                "help: start another run, with another seed"
            ) from None

    def _unmask(self, server: Server, signed: bool, survivors: tuple[str, ...], lost: Answers) -> None:
        asked = Survivors(survivors=survivors)
        confirmed = survivors
        if signed:
            bodies = dict.fromkeys(survivors, asked.write())
            if server.phase == "confirmations":
                self._confirmed = server.confirmations(self._ask("confirm", bodies, Confirmation, lost))
            asked = Survivors(survivors=survivors, confirmations=self._confirmed)
            confirmed = tuple(one.name for one in self._confirmed)
        server.reveal(self._ask("reveal", dict.fromkeys(confirmed, asked.write()), Reveal, lost))

    def _ask(
        self, phase: Phase, bodies: Mapping[str, bytes], kind: type[Answer], answers: Answers
    ) -> dict[str, Answer]:
        """What clients say in a phase; who says nothing that can be read is a failure in `answers`."""
        number, began = self.server.version + 1, time.perf_counter()
        found: dict[str, Answer] = {}
        for name, body in bodies.items():
            self._count(name, len(body))
        for answer in cast(SecureEngine, self.engine).question(number, phase, bodies):
            if isinstance(answer, Failure):
                answers[answer.client] = answer
                continue
            name, raw = answer
            self._up[name] = self._up.get(name, 0) + len(raw)
            try:
                found[name] = kind.read(raw)
            except SecureAggregationError as error:
                answers[name] = Failure(name, number, str(error))
        self._secure_seconds += time.perf_counter() - began
        return found

    def _session(self, tasks: Mapping[str, TrainTask], form: Form) -> Session:
        return Session(
            federation=self.federation,
            round=self.server.version + 1,
            nonce=secrets.token_hex(16),
            clients=tuple(tasks),
            threshold=self.threshold,
            layout=form.layout,
            about=self._about(tasks),
        )

    def _about(self, tasks: Mapping[str, TrainTask]) -> str:
        task = next(iter(tasks.values()))
        assert task.sum is not None
        return about(self.server.config, task.version, task.digest, task.sum)

    def _refused(self, server: Server, answers: Answers) -> None:
        for name, why in server.refused.items():
            answers[name] = Failure(name, self.server.version + 1, why)

    def _lacking(self, error: TooFewLeftError, answers: Answers) -> FederationError:
        for name, why in error.reasons.items():
            answers.setdefault(name, Failure(name, self.server.version + 1, why))
        return self.server.too_few(len(error.left), failures(answers), self.threshold)


def _claims(update: Update) -> Claims:
    return Claims.model_validate({name: getattr(update, name) for name in Claims.model_fields})


def _update(entry: _Entry, number: int) -> Update:
    said = entry.claims
    return Update(entry.client, number, said.examples, b"", said.loss, said.seconds.told(), said.epsilon, said.delta)

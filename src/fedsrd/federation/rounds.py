"""The rounds of a federation, whatever carries its bytes: who is asked, what is closed, what is repeated.

An engine is the carrier: function calls in one process (`federation.local`), or Flower (`fedsrd.flower`). Engines
report what they learn of clients; `Rounds` alone writes it into the server's ledger.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedsrd.errors import FederationError
from fedsrd.federation.messages import Broadcast, Failure, Held, Phases, Sync, TrainTask, Update
from fedsrd.federation.sampling import choose, share
from fedsrd.federation.server import Closed, Server, TooFewError
from fedsrd.recipe import ParticipationSection

Answers = dict[str, Update | Failure]


class Engine(Protocol):
    """What carries messages between the server and its clients."""

    def names(self, *, wait: bool = True) -> Sequence[str]:
        """The clients that can be asked now, in an order that does not depend on who came first; with `wait`, after
        some patience for there to be enough.
        """

    def reports(self) -> Sequence[Held]:
        """What was learnt of clients' replicas since this was last asked."""

    def ask(self, tasks: Mapping[str, TrainTask]) -> Iterable[Update | Failure]:
        """Sends every client its task and gives the answers as they come; who is silent is a Failure in the end."""

    def deliver(self, broadcast: Broadcast, counted: Mapping[str, bool]) -> Mapping[str, str]:
        """Has the clients apply a closed round's broadcast, where the engine does that at once; gives the digests of
        those who did. The others get it with their next task. `counted` says by client whether its update is in it.
        """

    def finalize(self, messages: Mapping[str, Sync]) -> Mapping[str, str]:
        """Brings clients to the newest version; gives the digests of those who answered."""


@dataclass(frozen=True, slots=True)
class Round:
    """A closed round.

    Attributes:
        closed: what the server made of it.
        bytes_down: what each client was sent, in bytes.
        bytes_up: what each client has sent, in bytes.
        seconds: by phase; the clients' phases are summed.
        attempts: how many times clients were asked.
    """

    closed: Closed
    bytes_down: dict[str, int]
    bytes_up: dict[str, int]
    seconds: dict[str, float]
    attempts: int


@dataclass
class Rounds:
    """Asks, closes, and repeats what failed.

    Args:
        server: the server.
        engine: what carries the bytes.
        participation: who is asked, and how often.
        seed: of the choice.
        warn: told what went wrong without ending the run.
    """

    server: Server
    engine: Engine
    participation: ParticipationSection
    seed: int
    warn: Callable[[str], None]
    _up: dict[str, int] = field(default_factory=dict)
    _down: dict[str, int] = field(default_factory=dict)

    def one_round(self) -> Round:
        """One round, closed, and delivered where the engine delivers at once.

        Raises:
            FederationError: too few usable updates in the last attempt too, or replicas differ. The state stays.
        """
        number = self.server.version + 1
        self._up, self._down = {}, {}
        answers: Answers = {}
        for attempt in range(1, self.participation.attempts + 1):
            try:
                closed = self._attempt(attempt, answers)
                break
            except TooFewError as error:
                if attempt == self.participation.attempts:
                    raise
                self.warn(f"{error}; asking again")
                for failure in error.rejected:
                    answers[failure.client] = failure
        for failure in closed.rejected:
            self.warn(f"round {number}: {failure.client} is left out: {failure.reason}")
        seconds = {
            phase: sum(update.seconds.get(phase, 0.0) for update in closed.accepted) for phase in Phases.model_fields
        }
        began = time.perf_counter()
        counted = {update.client for update in closed.accepted}
        found = self.engine.deliver(closed.broadcast, {name: name in counted for name in answers})
        seconds |= closed.seconds | {"apply": time.perf_counter() - began}
        if set(found.values()) - {self.server.digest}:
            raise FederationError(f"round {number}: replicas differ: {sorted(set(found.values()))}")
        for name, digest in found.items():
            self.server.note(Held(name, self.server.version, digest))
            self._count(name, len(closed.broadcast.payload))
        up = {update.client: len(update.payload) + self._up.get(update.client, 0) for update in closed.accepted}
        return Round(closed, self._down, up, seconds, attempt)

    def _attempt(self, attempt: int, answers: Answers) -> Closed:
        """Asks once more, and closes with what has come; `answers` is filled. Raises TooFewError where it cannot."""
        for answer in self.engine.ask(self.tasks(attempt, answers)):
            answers[answer.client] = answer
        return self.close(answers)

    def tasks(self, attempt: int, answers: Mapping[str, Update | Failure]) -> dict[str, TrainTask]:
        """The next round's tasks, by client: a choice that follows from the seed, the round and the attempt alone.

        Args:
            attempt: from 1.
            answers: what came of attempts before this one; who sent an update is not asked again.
        """
        number = self.server.version + 1
        names = list(self.names())
        good = [name for name, answer in answers.items() if isinstance(answer, Update)]
        wanted = self.wanted(len(names))
        purpose = (number,) if attempt == 1 else (number, attempt)
        rest = [name for name in names if name not in good]
        chosen = choose(rest, wanted - len(good), self.seed, *purpose)
        tasks = {name: self.server.task(name, len(chosen)) for name in chosen}
        for name, task in tasks.items():
            self._count(name, task.sync.size)
        return tasks

    def wanted(self, count: int) -> int:
        """How many of so many clients are asked in a round."""
        return share(count, self.participation.fraction, self.participation.minimum)

    def close(self, answers: Mapping[str, Update | Failure]) -> Closed:
        """Closes the round with these answers.

        Raises:
            TooFewError: fewer usable updates than the minimum. The state stays.
        """
        self.take_losses(answers)
        # A sum depends on its order: that of the recipe, never that of arrival.
        return self.server.close_round([answers[name] for name in self.server.in_order(answers)])

    def names(self, *, wait: bool = True) -> Sequence[str]:
        """The clients within reach; the ledger knows what they hold."""
        found = self.engine.names(wait=wait)
        self.take_reports()
        return found

    def take_reports(self) -> None:
        """Writes what the engine has learnt of clients into the ledger."""
        for held in self.engine.reports():
            self.server.note(held)

    def take_losses(self, answers: Mapping[str, Update | Failure]) -> None:
        """The same, and which clients have lost their replicas."""
        self.take_reports()
        for answer in answers.values():
            if isinstance(answer, Failure) and answer.lost:
                self.server.forget(answer.client)

    def at_newest(self, names: Iterable[str]) -> None:
        """These clients were given the server's present state."""
        for name in names:
            self.server.note(Held(name, self.server.version, self.server.digest))

    def finalize(self) -> dict[str, int]:
        """After the last round: brings every client within reach to the newest version and compares digests. Gives
        the bytes that it took, by client. Who differs even after the whole state was sent is warned of: one site must
        not spoil the end for all.
        """
        self._down = {}
        server = self.server
        behind = list(self.names(wait=False))
        for _ in range(2):
            messages = {name: server.sync(name) for name in behind}
            for name, sync in messages.items():
                self._count(name, sync.size)
            found = self.engine.finalize(messages)
            for name, held in found.items():
                server.note(Held(name, server.version, held))
            behind = [name for name, held in found.items() if held != server.digest]
            if not behind:
                break
        else:
            self.warn(f"not at the last version: {', '.join(behind)}")
        return self._down

    def _count(self, name: str, size: int) -> None:
        self._down[name] = self._down.get(name, 0) + size

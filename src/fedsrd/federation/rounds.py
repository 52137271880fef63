"""The rounds of a federation, whatever carries its bytes: who is asked, what is closed, what is repeated.

An engine is the carrier: function calls in one process (`federation.local`), or Flower (`fedsrd.flower`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedsrd.errors import FederationError
from fedsrd.federation.messages import Broadcast, Failure, Sync, TrainTask, Update
from fedsrd.federation.sampling import choose, share
from fedsrd.federation.server import Closed, Server, TooFewError
from fedsrd.recipe import ParticipationSection


class Engine(Protocol):
    """What carries messages between the server and its clients."""

    def names(self, *, wait: bool = True) -> Sequence[str]:
        """The clients that can be asked now, in an order that does not depend on who came first; with `wait`, after
        some patience for there to be enough.
        """

    def ask(self, tasks: Mapping[str, TrainTask]) -> Iterable[Update | Failure]:
        """Sends every client its task and gives the answers as they come; who is silent is a Failure in the end."""

    def deliver(self, broadcast: Broadcast, names: Sequence[str]) -> Mapping[str, str]:
        """Has the clients apply a closed round's broadcast, where the engine does that at once; gives the digests of
        those who did. The others get it with their next task.
        """

    def settle(self, messages: Mapping[str, Sync]) -> Mapping[str, str]:
        """Brings clients to the newest version; gives the digests of those who answered."""


@dataclass(frozen=True, slots=True)
class Round:
    """A closed round.

    Attributes:
        closed: what the server made of it.
        bytes_down: what each client was sent, in bytes.
        seconds: by phase; the clients' phases are summed.
        attempts: how many times clients were asked.
    """

    closed: Closed
    bytes_down: dict[str, int]
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
    _down: dict[str, int] = field(default_factory=dict)

    def one_round(self) -> Round:
        """One round, closed, and delivered where the engine delivers at once.

        Raises:
            FederationError: too few usable updates in the last attempt too, or replicas differ. The state stays.
        """
        number = self.server.version + 1
        self._down = {}
        answers: dict[str, Update | Failure] = {}
        for attempt in range(1, self.participation.attempts + 1):
            for answer in self._asked(number, attempt, answers):
                answers[answer.client] = answer
                if isinstance(answer, Failure) and answer.lost:
                    self.server.forget(answer.client)
            try:
                # A sum depends on its order: that of the recipe, never that of arrival.
                closed = self.server.close_round([answers[name] for name in self.server.in_order(answers)])
                break
            except TooFewError as error:
                if attempt == self.participation.attempts:
                    raise
                self.warn(f"{error}; attempt {attempt + 1} of {self.participation.attempts}")
                for failure in error.rejected:
                    answers[failure.client] = failure
        for failure in closed.rejected:
            self.warn(f"round {number}: {failure.client} is left out: {failure.reason}")
        seconds = {"train": 0.0, "sparsify": 0.0, "encode": 0.0}
        for update in closed.accepted:
            for phase, value in update.seconds.items():
                seconds[phase] += value
        began = time.perf_counter()
        found = self.engine.deliver(closed.broadcast, list(answers))
        seconds |= closed.seconds | {"apply": time.perf_counter() - began}
        if set(found.values()) - {self.server.digest}:
            raise FederationError(f"round {number}: replicas differ: {sorted(set(found.values()))}")
        for name in found:
            self.server.delivered(name)
            self._count(name, len(closed.broadcast.payload))
        return Round(closed, self._down, seconds, attempt)

    def settle(self) -> dict[str, int]:
        """After the last round: brings every client within reach to the newest version and compares digests. Gives
        the bytes that it took, by client. Who differs even after the whole state was sent is warned of: one site must
        not spoil the end for all.
        """
        self._down = {}
        server = self.server
        behind = list(self.engine.names(wait=False))
        for _ in range(2):
            messages = {name: server.sync(name) for name in behind}
            for name, sync in messages.items():
                self._count(name, sync.size)
            found = self.engine.settle(messages)
            for name, held in found.items():
                server.delivered(name) if held == server.digest else server.forget(name)
            behind = [name for name, held in found.items() if held != server.digest]
            if not behind:
                break
        else:
            self.warn(f"not at the last version: {', '.join(behind)}")
        return self._down

    def _asked(self, number: int, attempt: int, answers: Mapping[str, Update | Failure]) -> Iterable[Update | Failure]:
        names = list(self.engine.names())
        good = [name for name, answer in answers.items() if isinstance(answer, Update)]
        wanted = share(len(names), self.participation.fraction, self.participation.minimum)
        purpose = (number,) if attempt == 1 else (number, attempt)
        rest = [name for name in names if name not in good]
        chosen = choose(rest, wanted - len(good), self.seed, *purpose)
        tasks = {name: self.server.task(name) for name in chosen}
        for name, task in tasks.items():
            self._count(name, task.sync.size)
        return self.engine.ask(tasks)

    def _count(self, name: str, size: int) -> None:
        self._down[name] = self._down.get(name, 0) + size

"""The server: holds the global factors, takes updates, makes the broadcast. Knows no model, only the tensor table."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsrd import wire
from fedsrd.core.tensors import Delta, GlobalState, Tensors
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import snapshot, transition
from fedsrd.federation.ledger import Ledger
from fedsrd.federation.messages import Broadcast, Failure, Held, Snapshot, Start, Sync, TrainTask, Update
from fedsrd.federation.spool import Spool
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import Contribution, MethodState

Weighting = Literal["uniform", "examples"]
Counts = Mapping[str, int]
LOST = -1
"""The version of a client whose replica is not what it was taken for."""


class TooFewError(FederationError):
    """A round cannot close: fewer usable updates than the minimum.

    Attributes:
        rejected: who sent none, and why.
    """

    def __init__(self, message: str, rejected: Sequence[Failure]) -> None:
        super().__init__(message)
        self.rejected = list(rejected)


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed round.

    Attributes:
        broadcast: what every client must now apply.
        accepted: the updates that went in.
        rejected: the clients left out, and why.
        uplinks: how many values of each tensor the accepted updates have.
        downlink: how many values of each tensor the broadcast has.
        seconds: by phase: decode, server, broadcast.
    """

    broadcast: Broadcast
    accepted: list[Update]
    rejected: list[Failure]
    uplinks: list[Counts]
    downlink: Counts
    seconds: dict[str, float]


class Server:
    """The server's side of the federation.

    Args:
        config: what it shares with the clients.
        weighting: every client alike, or by its number of examples.
        ranks: the clients that the recipe names, in its order, with their own ranks.
        minimum: fewest usable updates that a round needs.
        norm_bound: leaves out updates whose norm is more than so many times the round's median; None for no bound.

    Attributes:
        state: the global state.
        memory: what the method keeps at the server between rounds.
        ledger: what clients have missed.
        roster: the clients that the recipe names, in its order.
        seeded: whether version 0 is the seed's start, which travels as the seed alone.
    """

    def __init__(
        self,
        config: FederationConfig,
        weighting: Weighting = "uniform",
        ranks: Mapping[str, int | None] | None = None,
        *,
        minimum: int = 1,
        norm_bound: float | None = None,
    ) -> None:
        self.config = config
        self.state = config.start()
        self.memory: MethodState = {}
        self.ledger = Ledger()
        self.roster = list(ranks or {})
        self.seeded = True
        self._weighting = weighting
        self._ranks = dict(ranks or {})
        self._minimum = minimum
        self._norm_bound = norm_bound
        self._snapshot: Snapshot | None = None

    def restore(self, state: GlobalState, memory: MethodState | None = None) -> None:
        """Continues from a checkpoint."""
        self.state, self.memory = state, dict(memory or {})

    @property
    def version(self) -> int:
        """How many rounds the state holds."""
        return self.state.version

    @property
    def digest(self) -> str:
        """Of the replicated state: what every client must hold."""
        return self.state.digest

    def model(self) -> Tensors:
        """The model's tensors to use and to evaluate."""
        return self.config.method.model(self.state, self.memory)

    def start(self) -> Start:
        """The message that gives a new client the common start, in a few bytes."""
        start = self.state if self.version == 0 and self.seeded else self.config.start()
        return Start(wire.encode_start(self.config.seed, self.config.state_table), start.digest)

    def task(self, client: str | None = None) -> TrainTask:
        """The next round's task; for a client that may be behind, with what it lacks."""
        sync = Sync() if client is None else self.sync(client)
        return TrainTask(self.version + 1, self.version, self.digest, sync)

    def sync(self, client: str) -> Sync:
        """What brings a client from the version that it is known to hold to the newest, in the fewest bytes."""
        held = self.ledger.known.get(client)
        counted = self.ledger.counted.get(client, 0)
        if held == self.version:
            return Sync(counted=counted)
        first = self.start() if held is None and self.seeded else None
        whole_only = held == LOST or (held is None and not self.seeded)
        missed = None if whole_only else self.ledger.since(held or 0, self.version)
        steps = None if missed is None else Sync(first, None, missed, counted)
        # A few small broadcasts need no comparison with a whole state, which takes long to make.
        if steps is not None and steps.size <= self.config.state_table.elements:
            return steps
        whole = Sync(snapshot=self.snapshot(), counted=counted)
        return whole if steps is None or whole.size < steps.size else steps

    def snapshot(self) -> Snapshot:
        """The whole state, made once a version."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = snapshot.take(self.state, self.config.state_table)
        return self._snapshot

    def differs(self, held: Held) -> bool:
        """Whether what a client holds is certainly not of this run, or of a later moment of it. An older version cannot
        be compared; where it is another's, the first step forward will tell.
        """
        if held.version == self.version:
            return held.digest not in (None, self.digest)
        return held.version > self.version

    def note(self, held: Held) -> None:
        """Takes a client at its word about what it holds, as far as the word can be checked."""
        if held.version < 0:
            self.ledger.known.pop(held.client, None)
        else:
            self.ledger.known[held.client] = LOST if self.differs(held) else held.version
        self.ledger.prune(4 * self.config.state_table.elements)

    def forget(self, client: str) -> None:
        """The client's replica is not what it was taken for: it gets the whole state next time."""
        self.ledger.known[client] = LOST

    def lost(self, client: str) -> bool:
        """Whether the client must let go of the replica that it has."""
        return self.ledger.known.get(client) == LOST

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Clients in the recipe's order, others after them by name: an order that does not depend on who came first."""
        places = {name: place for place, name in enumerate(self.roster)}
        return sorted(names, key=lambda name: (places.get(name, len(places)), name))

    def close_round(self, answers: Sequence[Update | Failure]) -> Closed:
        """Checks the answers, aggregates the good ones, and moves to the next version.

        An update that is damaged, of another round or version, or not finite is left out of the round and named.

        Raises:
            TooFewError: fewer updates than the minimum are usable.
            FederationError: the aggregate is not finite. The state stays as it was.
        """
        number = self.version + 1
        began = time.perf_counter()
        accepted: list[Update] = []
        rejected: list[Failure] = []
        counts: list[Counts] = []
        with Spool() as spool:
            deltas: list[Delta] = []
            norms: list[float] = []
            for answer in answers:
                if isinstance(answer, Failure):
                    rejected.append(answer)
                    continue
                try:
                    delta = self._read(answer)
                except PayloadError as error:
                    rejected.append(Failure(answer.client, number, str(error)))
                    continue
                accepted.append(answer)
                counts.append({name: sparse.count for name, sparse in delta.items()})
                norms.append(_norm(delta))
                deltas.append(spool.keep(delta))
            self._bound_norms(accepted, deltas, counts, rejected, norms, number)
            if len(accepted) < self._minimum:
                reasons = "; ".join(f"{failure.client}: {failure.reason}" for failure in rejected) or "nobody answered"
                few = f"{len(accepted)} of at least {self._minimum} clients" if accepted else "no client"
                raise TooFewError(f"round {number}: {few} sent a usable update ({reasons})", rejected)
            decoded = time.perf_counter()
            contributions = [
                Contribution(update.client, delta, weight, self._ranks.get(update.client))
                for update, delta, weight in zip(accepted, deltas, self._weights(accepted), strict=True)
            ]
            clients = max(len(self.roster), len(self.ledger.known), len(accepted))
            closed = transition.close(self.config, self.state, contributions, self.memory, clients)
        self.state, self.memory = closed.state, closed.memory
        seconds = {"decode": decoded - began, **closed.seconds}
        broadcast = Broadcast(number, number, closed.payload, self.digest, len(accepted))
        self.ledger.append(broadcast, [update.client for update in accepted])
        sent = {name: sparse.count for name, sparse in closed.sent.items()}
        return Closed(broadcast, accepted, rejected, counts, sent, seconds)

    def _read(self, update: Update) -> Delta:
        delta = transition.read_update(self.config, self.state, update.payload)
        if update.examples < 1:
            raise PayloadError(f"the client says that it has {update.examples} examples")
        return delta

    def _bound_norms(
        self,
        accepted: list[Update],
        deltas: list[Delta],
        counts: list[Counts],
        rejected: list[Failure],
        norms: list[float],
        round_number: int,
    ) -> None:
        """Takes out the updates whose norm is far above the round's median; of one or two there is no telling."""
        if self._norm_bound is None or len(norms) < 3:
            return
        median = statistics.median(norms)
        for place in reversed(range(len(norms))):
            if norms[place] > self._norm_bound * median:
                above = f"more than {self._norm_bound:g} times the round's median {median:.3g}"
                reason = f"its norm {norms[place]:.3g} is {above} (participation.norm_bound)"
                rejected.append(Failure(accepted[place].client, round_number, reason))
                del accepted[place], deltas[place], counts[place]

    def _weights(self, accepted: Sequence[Update]) -> list[float]:
        counts = [update.examples if self._weighting == "examples" else 1 for update in accepted]
        return [count / sum(counts) for count in counts]


def _norm(delta: Delta) -> float:
    """Frobenius norm of a whole update."""
    squares = (float(sparse.values.double().square().sum()) for sparse in delta.values())
    return math.sqrt(sum(squares))

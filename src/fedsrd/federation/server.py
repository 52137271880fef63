"""The server: holds the global factors, takes updates, makes the broadcast. Knows no model, only the shape table."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsrd import rng, wire
from fedsrd.core.factors import Base, Delta, Factors, LoraPair, ShapeTable, Slot, add_base, digest, initial_factors
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import snapshot
from fedsrd.federation.ledger import Ledger
from fedsrd.federation.messages import Broadcast, Failure, Snapshot, Start, Sync, TrainTask, Update
from fedsrd.federation.spool import Spool
from fedsrd.methods import Method, ServerStep, Step

Weighting = Literal["uniform", "examples"]
Counts = Mapping[Slot, int]
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
        uplinks: how many values of each slot the accepted updates have.
        downlink: how many values of each slot the broadcast has.
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

    Attributes:
        factors: the global factors.
        base: the change of the frozen weights; empty for most methods.
        memory: what the method keeps at the server between rounds.
        version: how many rounds they hold.
        ledger: what clients have missed.
        roster: the clients that the recipe names, in its order.
        seeded: whether version 0 is the seed's start, which travels as the seed alone.
    """

    def __init__(
        self,
        table: ShapeTable,
        method: Method,
        weighting: Weighting,
        seed: int,
        coding: wire.Coding | None = None,
        ranks: Mapping[str, int | None] | None = None,
        *,
        minimum: int = 1,
        norm_bound: float | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.roster = list(ranks or {})
        self.seeded = True
        self._digest: str | None = None
        self._minimum = minimum
        self._norm_bound = norm_bound
        self._snapshot: Snapshot | None = None
        self.base: dict[str, Tensor] = {}
        self.memory: dict[str, Tensor] = {}
        self._ranks = dict(ranks or {})
        self.factors: dict[str, LoraPair] = initial_factors(table, seed)
        self.version = 0
        self._table = table
        self._method = method
        self._weighting = weighting
        self._seed = seed
        self._coding = coding or wire.Coding()

    def restore(
        self, factors: Factors, version: int, base: Base | None = None, memory: Mapping[str, Tensor] | None = None
    ) -> None:
        """Continues from a checkpoint."""
        self.factors, self.version = dict(factors), version
        self.base, self.memory = dict(base or {}), dict(memory or {})
        self._digest = None

    @property
    def digest(self) -> str:
        """Of the replicated state: what every client must hold. Computed once a version."""
        if self._digest is None:
            self._digest = digest(self.factors, self.base)
        return self._digest

    def model(self) -> Factors:
        """The factors to use and to evaluate."""
        return self._method.model(self.factors, self.memory)

    def start(self) -> Start:
        """The message that gives a new client the common start, in a few bytes."""
        start = initial_factors(self._table, self._seed)
        return Start(wire.encode_start(self._seed, self._table), digest(start))

    def task(self, client: str | None = None) -> TrainTask:
        """The next round's task; for a client that may be behind, with what it lacks."""
        sync = Sync() if client is None else self.sync(client)
        return TrainTask(self.version + 1, self.version, self.digest, sync)

    def sync(self, client: str) -> Sync:
        """What brings a client from the version that it is known to hold to the newest, in the fewest bytes."""
        held = self.ledger.known.get(client)
        if held == self.version:
            return Sync()
        first = self.start() if held is None and self.seeded else None
        whole_only = held == LOST or (held is None and not self.seeded)
        missed = None if whole_only else self.ledger.since(held or 0, self.version)
        steps = None if missed is None else Sync(first, None, missed)
        # A few small broadcasts need no comparison with a whole state, which takes long to make.
        if steps is not None and steps.size <= self._table.elements:
            return steps
        whole = Sync(snapshot=self.snapshot())
        return whole if steps is None or whole.size < steps.size else steps

    def snapshot(self) -> Snapshot:
        """The whole state, made once a version."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = snapshot.take(self.factors, self.base, self.version)
        return self._snapshot

    def delivered(self, client: str) -> None:
        """The client holds the newest version."""
        self.holds(client, self.version)

    def holds(self, client: str, version: int) -> None:
        """The client says that it holds this version; one that is not of this run (yet) is as good as none."""
        self.ledger.known[client] = version if 0 <= version <= self.version else LOST
        self.ledger.prune(4 * self._table.elements)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Clients in the recipe's order, others after them by name: an order that does not depend on who came first."""
        places = {name: place for place, name in enumerate(self.roster)}
        return sorted(names, key=lambda name: (places.get(name, len(places)), name))

    def forget(self, client: str) -> None:
        """The client's replica is not what it was taken for: it gets the whole state next time."""
        self.ledger.known[client] = LOST

    def close_round(self, answers: Sequence[Update | Failure]) -> Closed:
        """Checks the answers, aggregates the good ones, and moves to the next version.

        An update that is damaged, of another round or version, or not finite is left out of the round and named.

        Raises:
            TooFewError: fewer updates than the minimum are usable.
            FederationError: the aggregate is not finite. The state stays as it was.
        """
        round_number = self.version + 1
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
                    delta = self._read(answer, round_number)
                except PayloadError as error:
                    rejected.append(Failure(answer.client, round_number, str(error)))
                    continue
                accepted.append(answer)
                counts.append({slot: sparse.count for slot, sparse in delta.items()})
                norms.append(_norm(delta))
                deltas.append(spool.keep(delta))
            self._bound_norms(accepted, deltas, counts, rejected, norms, round_number)
            if len(accepted) < self._minimum:
                reasons = "; ".join(f"{failure.client}: {failure.reason}" for failure in rejected) or "nobody answered"
                few = f"{len(accepted)} of at least {self._minimum} clients" if accepted else "no client"
                raise TooFewError(f"round {round_number}: {few} sent a usable update ({reasons})", rejected)
            decoded = time.perf_counter()
            ranks = [self._ranks.get(update.client) for update in accepted]
            step = ServerStep(round_number, self._seed, ranks, dict(self.memory))
            made = self._method.server_update(self.factors, deltas, self._weights(accepted), step)
        if not wire.is_finite(made):
            raise FederationError(f"round {round_number}: the aggregate has NaN or infinite values; state kept")
        aggregated = time.perf_counter()
        rounding = rng.integer(self._seed, "rounding", round_number)
        table = self._method.downlink_table(self._table, len(accepted))
        try:
            payload = wire.encode_delta(
                made, table, wire.Kind.DOWNLINK, round_number, self.version, self._coding, rounding
            )
        except ValueError as error:
            raise FederationError(f"round {round_number}: the broadcast cannot be sent: {error}; state kept") from None
        # The server applies what it sent, as the clients will read it: one state, whatever the coding rounds.
        _, downlink = wire.decode_delta(payload, table)
        plain = Step(round_number, self._seed)
        base = add_base(self.base, self._method.base_change(self.factors, downlink, plain))
        self.factors = self._method.apply(self.factors, downlink, plain)
        self.base, self.memory, self.version, self._digest = base, step.memory, round_number, None
        seconds = {
            "decode": decoded - began,
            "server": aggregated - decoded,
            "broadcast": time.perf_counter() - aggregated,
        }
        broadcast = Broadcast(round_number, self.version, payload, self.digest, len(accepted))
        self.ledger.append(broadcast)
        sent = {slot: sparse.count for slot, sparse in downlink.items()}
        return Closed(broadcast, accepted, rejected, counts, sent, seconds)

    def _read(self, update: Update, round_number: int) -> Delta:
        header, delta = wire.decode_delta(update.payload, self._table)
        got = (header.kind, header.round, header.version)
        if got != (wire.Kind.UPLINK, round_number, self.version):
            raise PayloadError(
                f"a {header.kind.name.lower()} of round {header.round} for version {header.version}: "
                f"expected an uplink of round {round_number} for version {self.version}"
            )
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

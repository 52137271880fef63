"""The server: holds the global factors, takes updates, makes the broadcast. Knows no model, only the tensor table."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsrd import wire
from fedsrd.core.tensors import Delta, GlobalState, Tensors
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import screening, snapshot, sums, transition
from fedsrd.federation.ledger import Ledger
from fedsrd.federation.messages import Broadcast, Failure, Held, Snapshot, Start, Sync, TrainTask, Update
from fedsrd.federation.robust import BY_ELEMENT, Robust, whole
from fedsrd.federation.screening import History, NormBound
from fedsrd.federation.spool import Spool
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import Contribution, MethodState
from fedsrd.privacy import central
from fedsrd.privacy.packed import Words

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


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An update that could be read: what it says, how many values of each tensor it has, and its norm."""

    update: Update
    delta: Delta
    counts: Counts
    norm: float


class Server:
    """The server's side of the federation.

    Args:
        config: what it shares with the clients.
        weighting: every client alike, or by its number of examples.
        ranks: the clients that the recipe names, in its order, with their own ranks.
        minimum: fewest usable updates that a round needs, 1 or more.
        norm_bound: leaves out updates whose norm is more than so many times what is usual (`screening`); None for no
            bound: then only what is not finite, or leads to what is not, is left out.
        max_share: largest share of one client in the aggregate, where clients count by their examples.
        noise: what the sum of the updates gets, each of them clipped; the norm bound is not asked then, because who is
            left out would depend on the others' data. None for none.
        far: about how far a round's training moves an element at most, for the first steps where updates are added up
            as integers.
        robust: how updates become one where some clients may lie; None: the method's own way.

    Attributes:
        state: the global state.
        memory: what the method keeps at the server between rounds.
        ledger: what clients have missed.
        history: how large each client's last accepted updates were.
        roster: the clients that the recipe names, in its order.
        seeded: whether version 0 is the seed's start, which travels as the seed alone.
        steps: of the grid, where updates are added up as integers; None where they are not.
    """

    def __init__(
        self,
        config: FederationConfig,
        weighting: Weighting = "uniform",
        ranks: Mapping[str, int | None] | None = None,
        *,
        minimum: int = 1,
        norm_bound: float | None = None,
        max_share: float = 0.5,
        noise: central.CentralNoise | None = None,
        far: float = 1e-3,
        robust: Robust | None = None,
    ) -> None:
        self.config = config
        self.state = config.start()
        self.memory: MethodState = {}
        self.ledger = Ledger()
        self.history = History()
        self.roster = list(ranks or {})
        self.seeded = True
        self.steps = None if config.sum is None else sums.Steps.first(config.uplink_table, config.sum, far)
        self._form: tuple[int, int, sums.Form] | None = None
        self._weighting = weighting
        self._ranks = dict(ranks or {})
        self._minimum = minimum
        self._max_share = max_share
        self._norm_bound = None if noise is not None else norm_bound
        self._noise = noise
        self._robust = robust
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

    def task(self, client: str, asked: int = 1) -> TrainTask:
        """The next round's task for a client, with what it lacks; so many are asked."""
        terms = None if self.steps is None else self.steps.terms(self.form(asked))
        return TrainTask(self.version + 1, self.version, self.digest, self.sync(client), terms)

    def form(self, asked: int) -> sums.Form:
        """The next round's vector, where updates are added up as integers and so many clients are asked."""
        if self._form is None or self._form[:2] != (self.version, asked):
            self._form = self.version, asked, self.config.form(self.version + 1, asked)
        return self._form[2]

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

        An update that is damaged, of another round or version, not finite, far too large, a copy of another's, or one
        with which the round cannot close is left out of the round and named.

        Raises:
            TooFewError: fewer updates than the minimum are usable. The state stays as it was.
        """
        number = self.version + 1
        began = time.perf_counter()
        with Spool() as spool:
            found, rejected = self._read(answers, spool, number)
            found = self._bounded(found, rejected, number)
            if len(found) < self._minimum:
                raise self._too_few(len(found), rejected, number)
            decoded = time.perf_counter()
            closed, found = self._close(found, rejected, number)
        self.state, self.memory = closed.state, closed.memory
        accepted = [one.update for one in found]
        self.history.append({one.update.client: one.norm for one in found})
        seconds = {"decode": decoded - began, **closed.seconds}
        return self._done(number, closed, accepted, rejected, [one.counts for one in found], seconds)

    def close_sum(
        self,
        found: Sequence[Update],
        rejected: list[Failure],
        total: Words,
        form: sums.Form,
        seconds: Mapping[str, float],
    ) -> Closed:
        """Closes a round with the sum of these clients' integers, and moves to the next version.

        Args:
            found: what they say of themselves; their payloads are not looked at.
            rejected: who is left out, and why.
            total: the sum, packed.
            form: the round's vector.
            seconds: by phase, that it took to come by the sum.

        Raises:
            FederationError: the sum is none of integers that so many clients send, or leads to no finite state. The
                state stays as it was.
        """
        assert self.steps is not None
        number, began = self.version + 1, time.perf_counter()
        delta, wanted = sums.opened(total, form, self.steps, len(found))
        decoded = time.perf_counter()
        clients = max(len(self.roster), len(self.ledger.known), len(found))
        closed = transition.close_sum(self.config, self.state, delta, len(found), self.memory, clients)
        self.steps = self.steps.following(form, wanted, len(found))
        self.state, self.memory = closed.state, closed.memory
        times = {**seconds, "decode": seconds.get("decode", 0.0) + decoded - began, **closed.seconds}
        return self._done(number, closed, list(found), rejected, [form.counts] * len(found), times)

    def _done(
        self,
        number: int,
        closed: transition.Closed,
        accepted: list[Update],
        rejected: list[Failure],
        uplinks: list[Counts],
        seconds: dict[str, float],
    ) -> Closed:
        broadcast = Broadcast(number, number, closed.payload, self.digest, len(accepted))
        self.ledger.append(broadcast, [update.client for update in accepted])
        sent = {name: sparse.count for name, sparse in closed.sent.items()}
        return Closed(broadcast, accepted, rejected, uplinks, sent, seconds)

    def too_few(self, found: int, rejected: Sequence[Failure], needed: int | None = None) -> TooFewError:
        """What to raise where the next round cannot close with so many updates; `needed` where that is not the
        recipe's minimum.
        """
        return self._too_few(found, rejected, self.version + 1, needed)

    @property
    def minimum(self) -> int:
        """Fewest usable updates that a round needs."""
        return self._minimum

    def _read(
        self, answers: Sequence[Update | Failure], spool: Spool, number: int
    ) -> tuple[list[_Candidate], list[Failure]]:
        """The answers that are updates of this round, decoded, and the failures."""
        found: list[_Candidate] = []
        rejected: list[Failure] = []
        seen: dict[bytes, str] = {}
        for answer in answers:
            if isinstance(answer, Failure):
                rejected.append(answer)
                continue
            try:
                delta = transition.read_update(self.config, self.state, answer.payload)
                update = self._countable(answer.checked())
            except PayloadError as error:
                rejected.append(Failure(answer.client, number, str(error)))
                continue
            norm = screening.norm_of_delta(delta)
            original = screening.copy_of(update.client, update.payload, norm, seen)
            if original is not None:
                rejected.append(Failure(update.client, number, f"its payload is a copy of {original}'s"))
                continue
            counts = {name: sparse.count for name, sparse in delta.items()}
            found.append(_Candidate(update, spool.keep(delta), counts, norm))
        return found, rejected

    def _countable(self, update: Update) -> Update:
        """The update. Raises PayloadError where its weight cannot be known."""
        if update.examples is None and self._weighting == "examples":
            raise PayloadError(
                'the site does not tell its number of examples, which weighting = "examples" needs; expected '
                'weighting = "uniform", or a site whose rules let it tell (rules.tell.examples)'
            )
        return update

    def _bounded(self, found: list[_Candidate], rejected: list[Failure], number: int) -> list[_Candidate]:
        """Those whose norm is within the bound; the others are added to `rejected`."""
        if self._norm_bound is None:
            return found
        bound = NormBound(self._norm_bound, screening.norm_of(self.state.tensors), self.config.uplink_table.elements)
        clients, norms = [one.update.client for one in found], [one.norm for one in found]
        out = bound.oversized(clients, norms, self.history)
        rejected += [Failure(clients[place], number, reason) for place, reason in out.items()]
        return [one for place, one in enumerate(found) if place not in out]

    def _close(
        self, found: list[_Candidate], rejected: list[Failure], number: int
    ) -> tuple[transition.Closed, list[_Candidate]]:
        """The round closed with those that it can close with; the others are added to `rejected`."""
        found, judged = self._judged(found, rejected, number)

        def close(places: Sequence[int]) -> transition.Closed:
            chosen = [found[place] for place in places]
            weights = self._weights(chosen) if judged is None else whole([judged[place] for place in places])
            contributions = [
                Contribution(one.update.client, one.delta, weight, self._ranks.get(one.update.client))
                for one, weight in zip(chosen, weights, strict=True)
            ]
            clients = max(len(self.roster), len(self.ledger.known), len(chosen))
            if self._robust is not None and self._robust.rule in BY_ELEMENT:
                total = self._robust.total(self.config, number, [one.delta for one in chosen])
                return transition.close_sum(self.config, self.state, total, len(chosen), self.memory, clients)
            if self._noise is not None:
                total = self._noised(contributions, number)
                return transition.close_sum(self.config, self.state, total, len(chosen), self.memory, clients)
            return transition.close(self.config, self.state, contributions, self.memory, clients)

        closed, kept, out = screening.close_with_most([one.norm for one in found], close)
        rejected += [Failure(found[place].update.client, number, reason) for place, reason in out.items()]
        left = [found[place] for place in kept]
        if closed is None or len(left) < self._minimum:
            raise self._too_few(len(left), rejected, number)
        return closed, left

    def _judged(
        self, found: list[_Candidate], rejected: list[Failure], number: int
    ) -> tuple[list[_Candidate], list[float] | None]:
        """Those that count by the robust rule, with their weights; the others are added to `rejected`."""
        if self._robust is None:
            return found, None
        if len(found) < self._robust.least:
            raise self._too_few(len(found), rejected, number, self._robust.least)
        verdict = self._robust.judge(self.state, [one.delta for one in found], self._weights(found))
        rejected += [Failure(found[place].update.client, number, reason) for place, reason in verdict.reasons.items()]
        return [found[place] for place in verdict.weights], list(verdict.weights.values())

    def _noised(self, contributions: Sequence[Contribution], number: int) -> Delta:
        assert self._noise is not None
        # Updates that lie on the disk are read once.
        deltas = [dict(one.delta) for one in contributions]
        try:
            return central.noised_sum(deltas, [one.weight for one in contributions], self._noise, number)
        except ValueError as error:
            raise FederationError(f"round {number}: {error}; state kept") from None

    def _too_few(self, found: int, rejected: Sequence[Failure], number: int, needed: int | None = None) -> TooFewError:
        reasons = "; ".join(f"{failure.client}: {failure.reason}" for failure in rejected) or "nobody answered"
        few = f"{found} of at least {needed or self._minimum} clients" if found else "no client"
        return TooFewError(f"round {number}: {few} sent a usable update ({reasons})", rejected)

    def _weights(self, found: Sequence[_Candidate]) -> list[float]:
        if self._weighting == "uniform":
            return [1 / len(found)] * len(found)
        return screening.shares([one.update.examples or 1 for one in found], self._max_share)

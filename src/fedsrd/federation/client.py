"""One client: holds a replica of the global state, trains from it, sends what the method keeps."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fedsrd import wire
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import GlobalState, Tensors, initial_tensors
from fedsrd.errors import FederationError, PayloadError, PrivacyError, SecureAggregationError
from fedsrd.federation import snapshot, transition
from fedsrd.federation.messages import Broadcast, Failure, Start, Sync, TrainTask, Update
from fedsrd.federation.secure_messages import about
from fedsrd.federation.sum_codec import Secret
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import ClientContext
from fedsrd.privacy.accounting import Spent
from fedsrd.privacy.packed import Words

NOTHING = GlobalState({}, {}, -1)
"""The replica of a client that holds none."""
Masking = Callable[[TrainTask, str, Words], None]
"""Masks packed words in place, for a task and what it is `about`. Raises SecureAggregationError."""
Advance = Callable[[FederationConfig, GlobalState, bytes, int], GlobalState]
"""The state that a broadcast leads to, as `transition.advance` makes it."""


class Trained(Protocol):
    """What local training gives back."""

    @property
    def tensors(self) -> Tensors:
        """The tensors after training."""

    @property
    def loss(self) -> float | None:
        """Mean loss a response token, in nats; None where training does not tell."""


class Trainer(Protocol):
    """Local training as the federation sees it (`training.sft.LocalTrainer` is one)."""

    @property
    def count(self) -> int:
        """Number of training examples."""

    def train(self, plan: LocalPlan, round_number: int, on_step: Callable[[int, float], None]) -> Trained:
        """Tensors and loss after one round of local training by a plan."""


@dataclass(frozen=True)
class ClientMemory:
    """What the method keeps at a client, and for which rounds.

    Attributes:
        kept: of the last round in which the client's update counted.
        round: that round; 0 for none.
        pending: of an update whose round is not known to have closed; None where there is none.
        pending_round: its round.
    """

    kept: Mapping[str, Tensor]
    round: int = 0
    pending: Mapping[str, Tensor] | None = None
    pending_round: int = 0

    def settled(self, version: int, counted: int) -> "ClientMemory":
        """The memory once the client knows how rounds up to `version` ended, and that its update last counted in the
        round `counted`.

        What came of an update that did not count is forgotten; what was kept before it stays. Where neither is of the
        round that counted, this client or the server went back to an older state: then nothing is kept, because what a
        method adds to its next update may have been sent already.
        """
        kept = self.kept if self.round == counted else {}
        if self.pending is not None and self.pending_round > version:
            return ClientMemory(kept, counted, self.pending, self.pending_round)
        if self.pending is not None and self.pending_round == counted:
            return ClientMemory(self.pending, counted)
        return ClientMemory(kept, counted)


@dataclass(frozen=True, slots=True)
class Job:
    """A round of training that is prepared.

    Attributes:
        round: from 1.
        plan: what is to be trained, and how.
        context: as the method has it.
        codec: of the update.
        seconds: that planning took.
    """

    round: int
    plan: LocalPlan
    context: ClientContext
    codec: transition.Coding
    seconds: float


class Client:
    """A client's side of the federation.

    Args:
        name: what the server calls it.
        config: the federation's.
        trainer: its local training.
        rank: its own, where it has one.
        advance: who makes the next state; clients in one process may share it (`local.Shared`).
        masking: masks an update for the session of secure aggregation that a task belongs to.
        secret: what a round's noise comes from, where clients add any.

    Attributes:
        name: what the server calls it.
        trainer: its local training.
        state: its replica of the global state.
        memory: what the method keeps at this client between rounds.
    """

    def __init__(
        self,
        name: str,
        config: FederationConfig,
        trainer: Trainer,
        rank: int | None = None,
        advance: Advance = transition.advance,
        masking: Masking | None = None,
        secret: Callable[[int], Secret] | None = None,
    ) -> None:
        self.name = name
        self.state = NOTHING
        self.memory = ClientMemory({})
        self._config = config
        self.trainer = trainer
        self._rank = rank
        self._advanced = advance
        self._masking = masking
        self._secret = secret

    @property
    def version(self) -> int:
        """Of the replica, the number of rounds that it holds; -1 for none."""
        return self.state.version

    @property
    def digest(self) -> str:
        """Of the replica."""
        return self.state.digest

    def restore(self, state: GlobalState, memory: ClientMemory | None = None) -> None:
        """Takes a checkpoint's state as the replica, and its own memory."""
        self.state = state
        if memory is not None:
            self.memory = memory

    def model(self, state: GlobalState) -> Tensors:
        """The tensors that this client would use with this global state, where the method's models are personal."""
        context, _ = self._context(self.version + 1)
        return self._config.method.client_model(state, context)

    def sync(self, message: Sync) -> None:
        """Brings the replica forward. What it holds already is passed over, so nothing is ever applied twice.

        Raises:
            PayloadError: a payload is damaged, for another adapter, or does not follow on this replica's version.
            FederationError: a state on the way is not the server's. The replica stays at the last one that was.
        """
        if message.start is not None and self.version < 0:
            self.start(message.start)
        if message.snapshot is not None and self.version < message.snapshot.version:
            whole = snapshot.read(
                message.snapshot, self._config.state_table, changes_base=self._config.method.changes_base
            )
            self._replace(whole, message.snapshot.digest)
        for broadcast in message.broadcasts:
            if broadcast.version > self.version:
                self._advance(broadcast)
        self.memory = self.memory.settled(self.version, message.counted)

    def start(self, message: Start) -> None:
        """Expands the common start.

        Raises:
            PayloadError: the start is damaged or for another adapter.
            FederationError: its expansion is not the server's.
        """
        table = self._config.state_table
        seed = wire.decode_start(message.payload, table)
        self._replace(GlobalState(initial_tensors(table, seed)), message.digest)

    def apply(self, message: Broadcast, *, counted: bool) -> str:
        """Applies a round's broadcast to the replica and gives the new digest. On any error the replica and the memory
        stay as they were.

        Args:
            message: the broadcast.
            counted: whether this client's update is in it.

        Raises:
            PayloadError: the payload is damaged, for another adapter, or for another version.
            FederationError: the result is not the server's state.
        """
        found = self._advance(message)
        self.memory = self.memory.settled(self.version, message.round if counted else self.memory.round)
        return found

    def answer(self, task: TrainTask, on_step: Callable[[int, float], None]) -> Update | Failure:
        """As `train`, for engines across a network: a replica that cannot follow is told as a failure."""
        try:
            return self.train(task, on_step)
        except (PayloadError, FederationError) as error:
            # What this replica holds is not to be built on; only a start or a snapshot takes it further.
            self.state = NOTHING
            return Failure(self.name, task.round, str(error), lost=True)
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = (str(error).splitlines() or ["no more memory"])[0]
            return Failure(self.name, task.round, f"out of memory: {reason} (smaller batches need less)")

    def train(self, task: TrainTask, on_step: Callable[[int, float], None]) -> Update | Failure:
        """Trains one round and gives the update, or the reason why there is none.

        Raises:
            PayloadError, FederationError: as `prepare`.
        """
        return self.run(self.prepare(task), on_step)

    def run(self, job: Job, on_step: Callable[[int, float], None]) -> Update | Failure:
        """Trains by a job, and gives what `finish` makes of it; where privacy does not allow it, why."""
        began = time.perf_counter()
        try:
            trained = self.trainer.train(job.plan, job.round, on_step)
        except PrivacyError as error:
            return Failure(self.name, job.round, str(error))
        return self.finish(job, trained, time.perf_counter() - began)

    def prepare(self, task: TrainTask) -> Job:
        """Brings the replica forward and plans the round's training, which the caller then has `trainer` do.

        Raises:
            PayloadError, FederationError: as `sync`; or the task builds on another state than this replica.
        """
        self.sync(task.sync)
        if task.version != self.version or task.digest != self.digest:
            raise FederationError(
                f"client {self.name}: the task builds on version {task.version}, digest {task.digest[:12]}; "
                f"this replica is version {self.version}, digest {self.digest[:12]}"
            )
        began = time.perf_counter()
        context, codec = self._context(task.round, self._summing(task))
        plan = self._config.method.local_plan(self.state, context)
        return Job(task.round, plan, context, codec, time.perf_counter() - began)

    def finish(self, job: Job, trained: Trained, seconds: float) -> Update | Failure:
        """The update that is made of a job's training, or the reason why there is none.

        Args:
            job: as `prepare` gave it.
            trained: what training by its plan gave.
            seconds: that the training took.
        """
        began = time.perf_counter()
        # A NaN or infinity would spoil every client's model; nothing of it leaves this one.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in trained.tensors.values()):
            return Failure(self.name, job.round, "training gave NaN or infinite parameters (learning rate too high?)")
        try:
            update = transition.update(self._config, job.plan, trained.tensors, job.context)
        except ValueError as error:
            return Failure(self.name, job.round, f"no update can be made of the training's result: {error}")
        sparsified = time.perf_counter()
        try:
            payload = job.codec.payload(update[0], wire.Kind.UPLINK, job.round, self.version)
        except (ValueError, SecureAggregationError) as error:
            return Failure(self.name, job.round, f"the update cannot be sent: {error}")
        phases = {
            "train": job.seconds + seconds,
            "sparsify": sparsified - began,
            "encode": time.perf_counter() - sparsified,
        }
        # It counts when the round has closed with this update in it.
        self.memory = ClientMemory(self.memory.kept, self.memory.round, update[1], job.round)
        # Trainers that promise nothing need not say so.
        spent: Spent | None = getattr(trained, "spent", None)
        promised = spent is not None and math.isfinite(spent.epsilon)
        epsilon, delta = (spent.epsilon, spent.delta) if spent is not None and promised else (None, None)
        # Where it weighs its own update, nobody need know by what.
        hidden = self._config.sum is not None and self._config.sum.examples is not None
        examples = None if hidden else self.trainer.count
        metrics = getattr(trained, "metrics", {})
        return Update(self.name, job.round, examples, payload, trained.loss, phases, epsilon, delta, metrics)

    def _context(
        self, round_number: int, summing: transition.Summing | None = None
    ) -> tuple[ClientContext, transition.Coding]:
        return transition.client_context(self._config, round_number, self.name, self._rank, self.memory.kept, summing)

    def _summing(self, task: TrainTask) -> transition.Summing | None:
        if (task.sum is None) != (self._config.sum is None):
            raise PayloadError("a task and its federation do not agree on whether updates are added up as integers")
        if task.sum is None:
            return None
        mask = None
        if task.inbox:
            if self._masking is None:
                raise PayloadError("a task of secure aggregation, for which this client has no session")
            mask = partial(self._masking, task, about(self._config, task.version, task.digest, task.sum))
        secret = None
        if self._config.noise is not None:
            if mask is None:
                raise PayloadError("a task with a share of noise, which is not enough alone, and no session to mask it")
            secret = None if self._secret is None else self._secret(task.round)
        return transition.Summing(task.sum, self.trainer.count, mask, secret)

    def _advance(self, message: Broadcast) -> str:
        if message.round != self.version + 1:
            raise PayloadError(
                f"client {self.name}: a broadcast of round {message.round}: expected one for version {self.version}"
            )
        following = self._advanced(self._config, self.state, message.payload, message.clients)
        return self._replace(following, message.digest)

    def _replace(self, state: GlobalState, expected: str) -> str:
        if state.digest != expected:
            raise FederationError(
                f"client {self.name}: version {state.version} has digest {state.digest[:12]} here and {expected[:12]} "
                "at the server"
            )
        self.state = state
        return state.digest

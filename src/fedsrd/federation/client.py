"""One client: holds a replica of the global factors, trains from it, sends what the method keeps."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedsrd import rng, wire
from fedsrd.core.factors import (
    Base,
    Factor,
    Factors,
    LoraPair,
    ShapeTable,
    add_base,
    digest,
    initial_factors,
    slots,
)
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import snapshot
from fedsrd.federation.messages import Broadcast, Failure, Start, Sync, TrainTask, Update
from fedsrd.methods import ClientStep, Method, Step


class Trained(Protocol):
    """What local training gives back."""

    @property
    def factors(self) -> dict[str, LoraPair]:
        """The factors after training."""

    @property
    def loss(self) -> float:
        """Mean loss a response token, in nats."""


class Trainer(Protocol):
    """Local training as the federation sees it (`training.sft.LocalTrainer` is one)."""

    @property
    def count(self) -> int:
        """Number of training examples."""

    def train(
        self,
        start: Factors,
        round_number: int,
        trained: Sequence[Factor],
        on_step: Callable[[int, float], None],
        *,
        base: Base,
        proximal: float,
    ) -> Trained:
        """Factors and loss after one round of local training from `start`, on weights changed by `base`, with
        proximal/2 ||theta - start||^2 added to the loss.
        """


class Client:
    """A client's side of the federation.

    Attributes:
        name: what the server calls it.
        factors: its replica of the global factors.
        base: its replica of the change of the frozen weights; empty for most methods.
        memory: what the method keeps at this client between rounds.
        pending: the memory after the last training, which counts when its round does.
        version: the replica's version, the number of rounds that it holds.
    """

    def __init__(
        self,
        name: str,
        table: ShapeTable,
        method: Method,
        trainer: Trainer,
        seed: int,
        coding: wire.Coding | None = None,
        rank: int | None = None,
    ) -> None:
        self.name = name
        self.factors: dict[str, LoraPair] = {}
        self.base: dict[str, Tensor] = {}
        self.memory: dict[str, Tensor] = {}
        self.version = -1
        self.pending: dict[str, Tensor] = {}
        self._rank = rank
        self._table = table
        self._method = method
        self._trainer = trainer
        self._seed = seed
        self._coding = coding or wire.Coding()

    def start(self, message: Start) -> None:
        """Expands the common start.

        Raises:
            PayloadError: the start is damaged or for another adapter.
            FederationError: its expansion is not the server's.
        """
        factors = initial_factors(self._table, wire.decode_start(message.payload, self._table))
        self._replace(factors, {}, 0, message.digest)

    def restore(
        self,
        factors: Factors,
        version: int,
        base: Base | None = None,
        memory: Mapping[str, Tensor] | None = None,
        pending: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Takes a copy of a checkpoint's state as the replica, and its own memory (`pending`: the same, if None)."""
        self.factors = {name: LoraPair(pair.B.clone(), pair.A.clone()) for name, pair in factors.items()}
        self.base = {name: tensor.clone() for name, tensor in (base or {}).items()}
        self.memory = dict(memory or {})
        self.pending = self.memory if pending is None else dict(pending)
        self.version = version

    @property
    def digest(self) -> str:
        """Of the replica."""
        return digest(self.factors, self.base)

    def model(self, state: Factors) -> Factors:
        """The factors that this client would use with this global state, where the method's models are personal."""
        return self._method.client_model(state, self._step(self.version + 1))

    def sync(self, message: Sync) -> None:
        """Brings the replica forward. What it holds already is passed over, so nothing is ever applied twice.

        Raises:
            PayloadError: a payload is damaged, for another adapter, or does not follow on this replica's version.
            FederationError: a state on the way is not the server's. The replica stays at the last one that was.
        """
        if message.start is not None and self.version < 0:
            self.start(message.start)
        if message.snapshot is not None and self.version < message.snapshot.version:
            factors, base = snapshot.read(message.snapshot, self._table)
            self._replace(factors, base, message.snapshot.version, message.snapshot.digest)
        for broadcast in message.broadcasts:
            if broadcast.version > self.version:
                self.apply(broadcast)

    def answer(self, task: TrainTask, on_step: Callable[[int, float], None]) -> Update | Failure:
        """As `train`, for engines across a network: a replica that cannot follow is told as a failure."""
        try:
            return self.train(task, on_step)
        except (PayloadError, FederationError) as error:
            # What this replica holds is not to be built on; only a start or a snapshot takes it further.
            self.version = -1
            return Failure(self.name, task.round, str(error), lost=True)
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = (str(error).splitlines() or ["no more memory"])[0]
            return Failure(self.name, task.round, f"out of memory: {reason} (smaller batches need less)")

    def train(self, task: TrainTask, on_step: Callable[[int, float], None]) -> Update | Failure:
        """Trains one round and gives the update, or the reason why there is none.

        Raises:
            PayloadError, FederationError: as `sync`; or the task builds on another state than this replica.
        """
        self.sync(task.sync)
        held = digest(self.factors, self.base)
        if task.version != self.version or task.digest != held:
            raise FederationError(
                f"client {self.name}: the task builds on version {task.version}, digest {task.digest[:12]}; "
                f"this replica is version {self.version}, digest {held[:12]}"
            )
        began = time.perf_counter()
        step = self._step(task.round)
        before = self._method.local_start(self.factors, step)
        trained = self._trainer.train(
            before,
            task.round,
            self._method.trained(task.round),
            on_step,
            base=self.base,
            proximal=self._method.proximal,
        )
        ended = time.perf_counter()
        # A NaN or infinity would spoil every client's model; nothing of it leaves this one.
        if not all(bool(torch.isfinite(tensor).all()) for _, tensor in slots(trained.factors)):
            return Failure(self.name, task.round, "training gave NaN or infinite parameters (learning rate too high?)")
        try:
            delta = self._method.client_update(before, trained.factors, step)
        except ValueError as error:
            return Failure(self.name, task.round, f"no update can be made of the training's result: {error}")
        sparsified = time.perf_counter()
        rounding = rng.integer(self._seed, "rounding", task.round, self.name)
        try:
            payload = wire.encode_delta(
                delta, self._table, wire.Kind.UPLINK, task.round, self.version, self._coding, rounding
            )
        except ValueError as error:
            return Failure(self.name, task.round, f"the update cannot be sent: {error}")
        seconds = {
            "train": ended - began,
            "sparsify": sparsified - ended,
            "encode": time.perf_counter() - sparsified,
        }
        # The memory counts when the round does.
        self.pending = step.memory
        return Update(self.name, task.round, self._trainer.count, payload, trained.loss, seconds)

    def apply(self, message: Broadcast) -> str:
        """Applies a round's broadcast to the replica and gives the new digest. On any error the replica and the memory
        stay as they were.

        Raises:
            PayloadError: the payload is damaged, for another adapter, or for another version.
            FederationError: the result is not the server's state.
        """
        table = self._method.downlink_table(self._table, message.clients)
        header, delta = wire.decode_delta(message.payload, table)
        if header.kind is not wire.Kind.DOWNLINK or header.version != self.version or header.round != message.round:
            raise PayloadError(
                f"client {self.name}: a {header.kind.name.lower()} of round {header.round} for version "
                f"{header.version}: expected a downlink of round {message.round} for version {self.version}"
            )
        step = Step(message.round, self._seed)
        factors = self._method.apply(self.factors, delta, step)
        base = add_base(self.base, self._method.base_change(self.factors, delta, step))
        found = self._replace(factors, base, message.version, message.digest)
        # Also where this client sat out: then nothing is pending but what it holds.
        self.memory = self.pending
        return found

    def _step(self, round_number: int) -> ClientStep:
        return ClientStep(round_number, self.name, self._seed, self._rank, dict(self.memory))

    def _replace(self, factors: dict[str, LoraPair], base: dict[str, Tensor], version: int, expected: str) -> str:
        found = digest(factors, base)
        if found != expected:
            raise FederationError(
                f"client {self.name}: version {version} has digest {found[:12]} here and {expected[:12]} at the server"
            )
        self.factors, self.base, self.version = factors, base, version
        return found

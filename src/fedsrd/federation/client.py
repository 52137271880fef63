"""One client: holds a replica of the global factors, trains from it, sends what the method keeps."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fedsrd import rng, wire
from fedsrd.core.factors import Factor, Factors, LoraPair, ShapeTable, digest, initial_factors, slots
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation.messages import Broadcast, Failure, Start, TrainTask, Update
from fedsrd.methods import ClientStep, Method


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
        self, start: Factors, round_number: int, trained: Sequence[Factor], on_step: Callable[[int, float], None]
    ) -> Trained:
        """Factors and loss after one round of local training from `start`."""


class Client:
    """A client's side of the federation.

    Attributes:
        name: what the server calls it.
        factors: its replica of the global factors.
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
    ) -> None:
        self.name = name
        self.factors: dict[str, LoraPair] = {}
        self.version = -1
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
        self._replace(factors, 0, message.digest)

    def restore(self, factors: Factors, version: int) -> None:
        """Takes a copy of a checkpoint's factors as the replica."""
        self.factors = {name: LoraPair(pair.B.clone(), pair.A.clone()) for name, pair in factors.items()}
        self.version = version

    def train(self, task: TrainTask, on_step: Callable[[int, float], None]) -> Update | Failure:
        """Trains one round and gives the update, or the reason why there is none.

        Raises:
            FederationError: the task builds on another state than this replica.
        """
        if task.version != self.version or task.digest != digest(self.factors):
            raise FederationError(
                f"client {self.name}: the task builds on version {task.version}, digest {task.digest[:12]}; "
                f"this replica is version {self.version}, digest {digest(self.factors)[:12]}"
            )
        began = time.perf_counter()
        trained = self._trainer.train(self.factors, task.round, self._method.trained(task.round), on_step)
        ended = time.perf_counter()
        # A NaN or infinity would spoil every client's model; nothing of it leaves this one.
        if not all(bool(torch.isfinite(tensor).all()) for _, tensor in slots(trained.factors)):
            return Failure(self.name, task.round, "training gave NaN or infinite parameters (learning rate too high?)")
        delta = self._method.client_update(self.factors, trained.factors, ClientStep(task.round, self.name, self._seed))
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
        return Update(self.name, task.round, self._trainer.count, payload, trained.loss, seconds)

    def apply(self, message: Broadcast) -> str:
        """Applies a round's broadcast to the replica and gives the new digest. On any error the replica stays as it
        was.

        Raises:
            PayloadError: the payload is damaged, for another adapter, or for another version.
            FederationError: the result is not the server's state.
        """
        header, delta = wire.decode_delta(message.payload, self._table)
        if header.kind is not wire.Kind.DOWNLINK or header.version != self.version or header.round != message.round:
            raise PayloadError(
                f"client {self.name}: a {header.kind.name.lower()} of round {header.round} for version "
                f"{header.version}: expected a downlink of round {message.round} for version {self.version}"
            )
        return self._replace(self._method.apply(self.factors, delta), message.version, message.digest)

    def _replace(self, factors: dict[str, LoraPair], version: int, expected: str) -> str:
        found = digest(factors)
        if found != expected:
            raise FederationError(
                f"client {self.name}: version {version} has digest {found[:12]} here and {expected[:12]} at the server"
            )
        self.factors, self.version = factors, version
        return found

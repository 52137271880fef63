"""The interface of a federated method: what a client sends, what the server makes of it, what both add.

A method is one file with one class. It sees tensors and says nothing about bytes, transport, training or models; its
options are a pydantic model, so that a recipe's [method] table is checked before anything starts. It keeps no state of
its own: everything that a round depends on is in the arguments, what must outlive a round goes into `step.memory`, and
chance comes from `fedsrd.rng` with the step's seed. docs/add-a-method.md builds one from nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedsrd.core.factors import FACTORS, Delta, Factor, Factors, LoraPair, ShapeTable, add
from fedsrd.errors import RecipeError
from fedsrd.suggest import did_you_mean

Memory = dict[str, Tensor]
"""What one side keeps between rounds, by a name of the method's choice. Put new tensors in; never write into one that
lies there: a round that fails is taken back by forgetting the new dictionary."""


class MethodOptions(BaseModel):
    """Base of every method's options: the keys of a recipe's [method] table besides `name`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Step:
    """Where the federation stands: the round (from 1) and the run's seed."""

    round: int
    seed: int


@dataclass(frozen=True, slots=True)
class ClientStep:
    """Where a client stands.

    Attributes:
        round: the round, from 1.
        client: its name.
        seed: the run's.
        rank: its own rank, where that is lower than the adapter's; else None.
        memory: what it keeps between rounds; counts once the round is closed.
    """

    round: int
    client: str
    seed: int
    rank: int | None = None
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerStep(Step):
    """Where the server stands when it aggregates.

    Attributes:
        ranks: each delta's client's own rank, in the deltas' order; None for the adapter's. Empty: all the adapter's.
        memory: what the server keeps between rounds; counts once the round is closed.
    """

    ranks: Sequence[int | None] = ()
    memory: Memory = field(default_factory=dict)


class Method(ABC):
    """One federated method.

    Attributes:
        name: what a recipe calls it.
        summary: one line for tables and help.
        Options: its options, with defaults.
        personal: every client ends with a model of its own (`client_model`), and each of these is evaluated.
        reference: no federation, but a point to compare with; it sends nothing.
        pooled: one client gets everybody's data.
        any_rank: clients may have lower ranks than the adapter.
        changes_base: rounds change the frozen weights (`base_change`), so that factors alone do not say all.
        server_model: the model to use (`model`) is known to the server alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    personal: ClassVar[bool] = False
    reference: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    changes_base: ClassVar[bool] = False
    server_model: ClassVar[bool] = False

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    @property
    def proximal(self) -> float:
        """Mu of mu/2 ||theta - theta_start||^2, which clients add to their training loss."""
        return 0.0

    def trained(self, round_number: int) -> Sequence[Factor]:
        """The factors that clients train in a round; the others stay as they are."""
        return FACTORS

    def local_start(self, state: Factors, step: ClientStep) -> Factors:
        """What a client's training starts from: the global factors, unless a method says otherwise."""
        return state

    @abstractmethod
    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """What the client sends: the change from `before` to `after` local training, compressed.

        Args:
            before: what training started from (`local_start`), all finite.
            after: the factors after training, all finite (the caller checks, and sends nothing otherwise).
            step: the round, the client, the seed and the client's memory.
        """

    @abstractmethod
    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """What the server broadcasts, in the shapes of `downlink_table`.

        Args:
            state: the global factors.
            deltas: what each client sent, at least one, all finite.
            weights: the clients' shares p_i, positive, with sum 1.
            step: the round, the seed and the server's memory.
        """

    def downlink_table(self, table: ShapeTable, clients: int) -> ShapeTable:
        """The shapes of a broadcast that aggregates `clients` updates; the adapter's own for most methods."""
        return table

    def apply(self, state: Factors, broadcast: Delta, step: Step) -> dict[str, LoraPair]:
        """The next global factors, computed alike by the server and by every client."""
        return add(state, broadcast)

    def base_change(self, state: Factors, broadcast: Delta, step: Step) -> Iterable[tuple[str, Tensor]]:
        """What the round adds to the frozen weights: module and (out_features, in_features) float32, in units of B A.

        Nothing for most methods. Computed alike by the server and by every client, `state` as `apply` gets it.
        """
        return ()

    def model(self, state: Factors, memory: Memory) -> Factors:
        """The factors to use and to evaluate, from the global state and the server's memory."""
        return state

    def client_model(self, state: Factors, step: ClientStep) -> Factors:
        """A client's own factors to use, for methods that are `personal`. `step.round` is the next round's."""
        return self.local_start(state, step)


_REGISTRY: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: makes a method known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in _REGISTRY:
        raise ValueError(f"two methods are called {method.name!r}")
    _REGISTRY[method.name] = method
    return method


def names() -> list[str]:
    """The known methods' names, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        RecipeError: there is none; the message names the nearest and all known ones.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    hint = did_you_mean(name, _REGISTRY)
    raise RecipeError(f"method.name = {name!r}: no such method.{hint} Known: {', '.join(names())}.")

"""The interface of a federated method: what a client sends, what the server makes of it, what both add.

A method is one file with one class. It sees tensors and says nothing about bytes, transport, training or models; its
options are a pydantic model, so that a recipe's [method] table is checked before anything starts. It keeps no state
between calls: everything that a round depends on is in the arguments, and chance comes from `fedsrd.rng` with their
seed.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from fedsrd.core.factors import FACTORS, Delta, Factor, Factors, LoraPair, add
from fedsrd.errors import RecipeError


class MethodOptions(BaseModel):
    """Base of every method's options: the keys of a recipe's [method] table besides `name`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class ClientStep:
    """Where a client stands when it makes its update: the round (from 1), its name, the run's seed."""

    round: int
    client: str
    seed: int


@dataclass(frozen=True, slots=True)
class ServerStep:
    """Where the server stands when it aggregates: the round (from 1) and the run's seed."""

    round: int
    seed: int


class Method(ABC):
    """One federated method.

    Attributes:
        name: what a recipe calls it.
        summary: one line for tables and help.
        Options: its options, with defaults.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def trained(self, round_number: int) -> Sequence[Factor]:
        """The factors that clients train in a round; the others stay as they are."""
        return FACTORS

    @abstractmethod
    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """What the client sends: the change from `before` to `after` local training, compressed.

        Args:
            before: the global factors that training started from, all finite.
            after: the factors after training, all finite (the caller checks, and sends nothing otherwise).
            step: the round, the client and the seed.
        """

    @abstractmethod
    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """What the server broadcasts.

        Args:
            state: the global factors that the clients started from.
            deltas: what each client sent, at least one, all finite.
            weights: the clients' shares p_i, positive, with sum 1.
            step: the round and the seed.
        """

    def apply(self, state: Factors, broadcast: Delta) -> dict[str, LoraPair]:
        """The next global factors, computed alike by the server and by every client."""
        return add(state, broadcast)


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
    near = difflib.get_close_matches(name, _REGISTRY, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"method.name = {name!r}: no such method.{hint} Known: {', '.join(names())}.")

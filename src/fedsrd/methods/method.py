"""The interface of a federated method: what a client trains and sends, what the server makes of it, what both apply.

A method is one file with one class. It sees named tensors and says nothing about bytes, transport, training or models;
its options are a pydantic model, so that a recipe's [method] table is checked before anything starts. Its functions are
pure: everything that a round depends on is in the arguments, what must outlive a round is returned as the next
`MethodState`, and chance comes from `fedsrd.rng` with the context's seed. docs/add-a-method.md builds one from nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.server_optimizer import ServerOptimizer, ServerOptimizerOptions
from fedsrd.core.tensors import Delta, Draw, GlobalState, SparseTensor, Tensors, TensorTable, add, average

MethodState = Mapping[str, Tensor]
"""What one side keeps between rounds, by names of the method's choice. A method gets the last one and returns the next;
it counts when its round does."""

Received = Callable[[Delta], Delta]
"""What the receiver will decode of a delta, bit for bit: rounded to the number type, without what became zero."""


def as_it_is(delta: Delta) -> Delta:
    """`Received` of a wire that loses nothing."""
    return delta


Size = Callable[[Delta], int]
"""Bytes of the payload that a delta becomes, as the number type of its direction has it."""


def plain_size(delta: Delta) -> int:
    """`Size` of a wire of float32 values and int32 positions."""
    return sum((4 if sparse.positions is None else 8) * sparse.count for sparse in delta.values())


class MethodOptions(BaseModel):
    """Base of every method's options: the keys of a recipe's [method] table besides `name`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class RoundContext:
    """Where the federation stands: the round (from 1) and the run's seed."""

    round: int
    seed: int


@dataclass(frozen=True, slots=True)
class ClientContext(RoundContext):
    """Where a client stands.

    Attributes:
        client: its name.
        rank: its own rank, where that is lower than the adapter's; else None.
        memory: what it kept of the last round in which its update counted.
        received: what the server will decode of an update.
        size: bytes of the payload that an update becomes.
    """

    client: str = ""
    rank: int | None = None
    memory: MethodState = field(default_factory=dict)
    received: Received = as_it_is
    size: Size = plain_size


@dataclass(frozen=True, slots=True)
class ServerContext(RoundContext):
    """Where the server stands when it aggregates.

    Attributes:
        clients: how many clients the federation has, whether or not they take part in this round.
        memory: what the server kept of the last round.
        received: what clients will decode of a broadcast.
        optimizer: makes steps of aggregates; None: the aggregate is the step.
    """

    clients: int = 1
    memory: MethodState = field(default_factory=dict)
    received: Received = as_it_is
    optimizer: ServerOptimizer | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One client's part in a round.

    Attributes:
        client: its name.
        delta: what it sent, all finite.
        weight: its share p_i of the aggregate; positive, with sum 1 over a round.
        rank: its own rank, where that is lower than the adapter's; else None.
    """

    client: str
    delta: Delta
    weight: float
    rank: int | None = None


def mean(state: GlobalState, contributions: Sequence[Contribution]) -> dict[str, SparseTensor]:
    """sum_i p_i delta_i of every tensor that somebody sent."""
    return average(state.tensors, [one.delta for one in contributions], [one.weight for one in contributions])


class Method(ABC):
    """One federated method.

    Attributes:
        name: what a recipe calls it.
        summary: one line for tables and help.
        Options: its options, with defaults.
        default_optimizer: the server optimizer where the recipe names none; None for none.
        needs_lora: works on pairs of LoRA factors, not on any tensors.
        personal: every client ends with a model of its own (`client_model`), and each of these is evaluated.
        reference: no federation, but a point to compare with; it sends nothing.
        pooled: one client gets everybody's data.
        any_rank: clients may have lower ranks than the adapter.
        changes_base: rounds change the frozen weights, so that the trained tensors alone do not say all.
        server_model: the model to use (`model`) is known to the server alone.
        keeps_client_state: clients keep something between rounds.
        hooks_gradients: local training has a gradient hook.
        counts_alike: the server keeps something in which every client counts alike, whatever its weight.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    default_optimizer: ClassVar[ServerOptimizerOptions | None] = None
    needs_lora: ClassVar[bool] = False
    personal: ClassVar[bool] = False
    reference: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    changes_base: ClassVar[bool] = False
    server_model: ClassVar[bool] = False
    keeps_client_state: ClassVar[bool] = False
    hooks_gradients: ClassVar[bool] = False
    counts_alike: ClassVar[bool] = False

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    @property
    def linear(self) -> bool:
        """Whether the server needs only sum_i p_i delta_i (`sum_update`), not single updates."""
        return False

    @property
    def same_elements(self) -> bool:
        """Whether all clients send the same elements in a round, which everybody can tell (`elements`)."""
        return False

    @property
    def makes_steps(self) -> bool:
        """Whether the broadcast is a step that a server optimizer may change."""
        return True

    def state_table(self, table: TensorTable) -> TensorTable:
        """The tensors that server and clients hold alike: the model's, and what a method replicates besides. Those
        start at zero.
        """
        return table

    def uplink_table(self, table: TensorTable) -> TensorTable:
        """The tensors of an update; `table` is that of the state, and the answer for most methods."""
        return table

    def downlink_table(self, table: TensorTable, clients: int) -> TensorTable:
        """The tensors of a broadcast that aggregates `clients` updates; those of the state for most methods."""
        return table

    def elements(self, table: TensorTable, context: RoundContext) -> Mapping[str, Draw | None]:
        """What every client sends in a round, where that is the `same_elements`: by tensor a draw, or None for all.

        Args:
            table: that of updates.
            context: the round and the run's seed.
        """
        raise NotImplementedError(f"{self.name}: each client chooses its own elements")

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """What the client trains, from where, and how: everything from the global state, unless a method says
        otherwise.
        """
        return LocalPlan(state.tensors, tuple(state.tensors), state.base_delta)

    @abstractmethod
    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """What the client sends, and what it keeps if that counts.

        Args:
            plan: what `local_plan` gave; training has run with it.
            after: the tensors after training, all finite (the caller checks, and sends nothing otherwise).
            context: the round, the client, the seed and the client's state; `context.received` says what will arrive.
        """

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """The clients' updates as one change, tensor by tensor, so that memory need not hold all at once.

        Args:
            state: the global state.
            contributions: at least one.
            context: the round, the seed and the server's state.
        """
        raise NotImplementedError(f"{self.name} makes its broadcast in server_update")

    def aggregate_sum(
        self, state: GlobalState, total: Delta, context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """As `aggregate`, from sum_i p_i delta_i alone, for methods that are `linear`."""
        raise NotImplementedError(f"{self.name} is not linear: it needs every client's own update")

    def is_step(self, name: str) -> bool:
        """Whether the server optimizer changes this tensor's aggregate."""
        return True

    def compress(
        self, state: GlobalState, steps: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """What is broadcast of the step, tensor by tensor, and what is kept of the rest: all of it and nothing, unless
        a method says otherwise.
        """
        return dict(steps), {}

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """What the server broadcasts, in the shapes of `downlink_table`, and what it keeps: `aggregate`, the server
        optimizer, `compress`. Arguments as `aggregate`.
        """
        return self._broadcast(state, self.aggregate(state, contributions, context), context)

    def sum_update(self, state: GlobalState, total: Delta, context: ServerContext) -> tuple[Delta, MethodState]:
        """As `server_update`, from sum_i p_i delta_i alone, for methods that are `linear`."""
        return self._broadcast(state, self.aggregate_sum(state, total, context), context)

    def _broadcast(
        self, state: GlobalState, aggregate: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        memory = dict(context.memory)
        optimizer = context.optimizer

        def steps() -> Iterable[tuple[str, SparseTensor]]:
            for name, found in aggregate:
                if optimizer is None or not self.is_step(name):
                    yield name, found
                    continue
                step, kept = optimizer.step(name, found, context.memory)
                memory.update(kept)
                yield name, step

        sent, rest = self.compress(state, steps(), context)
        return sent, {**memory, **rest}

    def apply(self, state: GlobalState, broadcast: Delta, context: RoundContext) -> GlobalState:
        """The next global state, computed alike by the server and by every client."""
        return state.following(add(state.tensors, broadcast))

    def model(self, state: GlobalState, memory: MethodState) -> Tensors:
        """The model's tensors to use and to evaluate, from the global state and the server's memory."""
        return state.tensors

    def client_model(self, state: GlobalState, context: ClientContext) -> Tensors:
        """A client's own tensors to use, for methods that are `personal`. `context.round` is the next round's."""
        return self.local_plan(state, context).start

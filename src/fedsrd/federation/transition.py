"""The one way from a version of the global state to the next, for server, clients, library and Flower alike.

`close` makes a broadcast of the clients' contributions, `advance` moves a state by a broadcast; the server moves its
own state by the bytes that it sends, so that all hold the same bits whatever the number type rounds. Both are pure: on
an error nothing has changed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from fedsrd import rng, wire
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, TensorTable, aligned, initial_tensors
from fedsrd.errors import FederationError, PayloadError, PrivacyError
from fedsrd.federation import sum_codec, sums
from fedsrd.methods import (
    ClientContext,
    Contribution,
    Method,
    MethodState,
    RoundContext,
    ServerContext,
    ServerOptimizer,
    capabilities,
)
from fedsrd.privacy import central
from fedsrd.privacy.options import ClientPrivacy
from fedsrd.privacy.packed import Words

UNABLE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What a method raises where updates that are finite lead to nothing that is."""
_Update = Callable[[ServerContext], tuple[Delta, MethodState]]


@dataclass(frozen=True)
class FederationConfig:
    """What server and clients agree on before anything travels.

    Attributes:
        method: the federated method, with its options.
        table: the model's trained tensors.
        seed: of whatever is drawn.
        uplink: how updates are written.
        downlink: how broadcasts are written.
        optimizer: the server's; None: the method's own, or none.
        clip: L2 norm to which an update is scaled down at the client; None: as it is.
        sum: how updates are added up as integers; None: they are not.
        noise: what every client adds to its integers, and how many shares of it a sum has at least; None: nothing.
        training: digest of how clients train, as far as all train alike; "" where that is not known.

    Raises:
        RecipeError: the table has tensors that are no LoRA factors, and the method needs pairs of them.
    """

    method: Method
    table: TensorTable
    seed: int
    uplink: wire.WireOptions = field(default_factory=wire.WireOptions)
    downlink: wire.WireOptions = field(default_factory=wire.WireOptions)
    optimizer: ServerOptimizer | None = None
    clip: float | None = None
    sum: wire.SumOptions | None = None
    noise: tuple[ClientPrivacy, int] | None = None
    training: str = ""

    def __post_init__(self) -> None:
        if self.sum is not None:
            capabilities.check(self.method, capabilities.MASKED_SUM)
        if any(spec.role == "plain" for spec in self.table.specs):
            capabilities.check(self.method, capabilities.PLAIN_TENSORS)

    @cached_property
    def state_table(self) -> TensorTable:
        """The tensors that server and clients hold alike."""
        return self.method.state_table(self.table)

    @cached_property
    def uplink_table(self) -> TensorTable:
        """The tensors of an update."""
        return self.method.uplink_table(self.state_table)

    def form(self, round_number: int, clients: int) -> sums.Form:
        """The vector of a round in which so many clients are asked, where updates are added up as integers."""
        assert self.sum is not None
        context = RoundContext(round_number, self.seed)
        return sums.Form.of(self.method, self.uplink_table, self.sum, context, clients, self.noise)

    def downlink_table(self, clients: int) -> TensorTable:
        """The tensors of a broadcast that aggregates so many updates."""
        return self.method.downlink_table(self.state_table, clients)

    def start(self) -> GlobalState:
        """Version 0 as the seed says it."""
        return GlobalState(initial_tensors(self.state_table, self.seed))


class Coding(Protocol):
    """What makes bytes of an update, and knows what will arrive."""

    def received(self, delta: Delta) -> Delta:
        """What the receiver will decode. Raises ValueError where it cannot be sent."""

    def size(self, delta: Delta) -> int:
        """Bytes of its payload. Raises ValueError likewise."""

    def payload(self, delta: Delta, kind: wire.Kind, round_number: int, version: int) -> bytes:
        """The bytes. Raises ValueError likewise."""


class Codec:
    """One direction's number type in the hands of a method: what it is told will arrive is what is sent."""

    def __init__(self, table: TensorTable, options: wire.WireOptions, seed: int, clip: float | None = None) -> None:
        self._table = table
        self._options = options
        self._seed = seed
        self._clip = clip
        self._last: tuple[Delta, wire.Quantised] | None = None

    def received(self, delta: Delta) -> Delta:
        """What the receiver will decode. Raises ValueError as `wire.quantise`."""
        return self._quantised(delta).delta()

    def size(self, delta: Delta) -> int:
        """Bytes of its payload. Raises ValueError as `wire.quantise`."""
        return len(self.payload(delta, wire.Kind.UPLINK, 0, 0))

    def payload(self, delta: Delta, kind: wire.Kind, round_number: int, version: int) -> bytes:
        """The bytes. Raises ValueError as `wire.quantise`."""
        return self._quantised(delta).payload(kind, round_number, version)

    def _quantised(self, delta: Delta) -> wire.Quantised:
        # A method that asks what will arrive sends the same delta afterwards: its numbers are not rounded twice.
        if self._last is None or self._last[0] is not delta:
            self._last = (delta, self._within(delta))
        return self._last[1]

    def _within(self, delta: Delta) -> wire.Quantised:
        found = wire.quantise(delta, self._table, self._options, self._seed)
        if self._clip is None:
            return found
        # Rounding may make it longer than it was: what is received is within the clip, as far as a few tries go; the
        # server clips what is left. A method with feedback keeps what this takes, as it keeps what rounding takes.
        bound = self._clip
        for _ in range(4):
            long = central.norm(found.delta())
            if long <= self._clip:
                break
            found = wire.quantise(central.clipped(delta, bound), self._table, self._options, self._seed)
            bound *= min(1.0, self._clip / max(central.norm(found.delta()), 1e-300)) * (1 - 1e-6)
        return found


@dataclass(frozen=True)
class Closed:
    """A closed round.

    Attributes:
        payload: the broadcast.
        sent: what is in it, as every receiver decodes it.
        state: the next global state.
        memory: what the method keeps at the server.
        seconds: "server", the aggregation, and "broadcast", its coding and application.
    """

    payload: bytes
    sent: Delta
    state: GlobalState
    memory: MethodState
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Summing:
    """What a client needs for an update that is added up as integers.

    Attributes:
        terms: of the round's sum.
        examples: the client's number of them.
        mask: adds masks to packed words, in place; None: they travel as they are.
        secret: what noise comes from (`sum_codec.SumCodec`).
    """

    terms: sums.Terms
    examples: int
    mask: Callable[[Words], None] | None = None
    secret: sum_codec.Secret | None = None


def client_context(
    config: FederationConfig,
    round_number: int,
    client: str,
    rank: int | None,
    memory: MethodState,
    summing: Summing | None = None,
) -> tuple[ClientContext, Coding]:
    """Where a client stands in a round, and the codec of its update. Every client rounds on a stream of its own.

    Raises:
        PayloadError: updates are added up as integers, and what the server says of the sum does not fit.
    """
    seed = rng.integer(config.seed, "rounding", round_number, client)
    codec: Coding
    if config.sum is None or summing is None:
        codec = Codec(config.uplink_table, config.uplink, seed, config.clip)
    else:
        form = _form(config, round_number, summing.terms)
        codec = sum_codec.SumCodec(form, summing.terms, seed, summing.examples, summing.mask, summing.secret)
    return ClientContext(round_number, config.seed, client, rank, laid(memory), codec.received, codec.size), codec


def _form(config: FederationConfig, round_number: int, terms: sums.Terms) -> sums.Form:
    try:
        form = config.form(round_number, terms.clients)
        _ = form.bits
    except (ValueError, PrivacyError) as error:
        raise PayloadError(f"the round's sum: {error}") from None
    if len(terms.steps) != len(form.elements) or not all(0 < word < 0x7F80 for word in terms.steps):
        raise PayloadError(
            f"the round's sum: {len(terms.steps)} steps; expected one for each of {len(form.elements)} tensors, as "
            "bfloat16 words of positive numbers"
        )
    return form


def update(
    config: FederationConfig, plan: LocalPlan, after: Tensors, context: ClientContext
) -> tuple[Delta, MethodState]:
    """What a client sends after local training, and what it keeps if that counts; `context`'s codec makes it bytes.

    Args:
        config: the federation's.
        plan: the method's, by which training has run.
        after: the tensors after training, all finite.
        context: of `client_context`.

    Raises:
        ValueError: no update can be made of the training's result.
    """
    placed = {name: aligned(after[name]) for name in plan.start}
    return config.method.client_update(plan, placed, context)


def read_update(config: FederationConfig, state: GlobalState, payload: bytes) -> Delta:
    """The delta of an uplink that builds on this state.

    Raises:
        PayloadError: it is damaged, for another adapter, or of another round or version.
    """
    header, delta = wire.decode_delta(payload, config.uplink_table)
    expected = (wire.Kind.UPLINK, state.version + 1, state.version)
    if (header.kind, header.round, header.version) != expected:
        raise PayloadError(
            f"a {header.kind.name.lower()} of round {header.round} for version {header.version}: "
            f"expected an uplink of round {state.version + 1} for version {state.version}"
        )
    return delta


def close(
    config: FederationConfig,
    state: GlobalState,
    contributions: Sequence[Contribution],
    memory: MethodState,
    clients: int,
) -> Closed:
    """Closes a round: contributions in, broadcast and next state out.

    Args:
        config: the federation's.
        state: what the contributions build on.
        contributions: at least one, in an order that does not depend on who came first: a sum depends on its order.
        memory: what the method kept at the server of the last round.
        clients: how many the federation has in all.

    Raises:
        FederationError: the aggregate, or the state that it leads to, is not finite, or it cannot be sent in the number
            type. Nothing has changed.
    """
    contributions = [_laid(one) for one in contributions]
    count = len(contributions)
    return _close(
        config,
        state,
        memory,
        clients,
        count,
        lambda context: config.method.server_update(state, contributions, context),
    )


def close_sum(
    config: FederationConfig, state: GlobalState, total: Delta, count: int, memory: MethodState, clients: int
) -> Closed:
    """As `close`, from the sum of `count` clients' weighted updates alone, for methods that are linear.

    Raises:
        FederationError: as `close`.
        RecipeError: the method needs single updates.
    """
    capabilities.check(config.method, capabilities.SUM_ONLY)

    def update(context: ServerContext) -> tuple[Delta, MethodState]:
        return config.method.sum_update(state, total, context)

    return _close(config, state, memory, clients, count, update)


def advance(config: FederationConfig, state: GlobalState, payload: bytes, clients: int) -> GlobalState:
    """The state that a broadcast leads to.

    Args:
        config: the federation's.
        state: the version before.
        payload: a downlink for it.
        clients: how many updates it aggregates: some methods' shapes follow from that.

    Raises:
        PayloadError: it is damaged, for another adapter, or for another version.
    """
    return _applied(config, state, read_broadcast(config, state, payload, clients))


def read_broadcast(config: FederationConfig, state: GlobalState, payload: bytes, clients: int) -> Delta:
    """The delta of a downlink that builds on this state. Raises PayloadError as `advance`."""
    header, delta = wire.decode_delta(payload, config.downlink_table(clients))
    number = state.version + 1
    if (header.kind, header.version, header.round) != (wire.Kind.DOWNLINK, state.version, number):
        raise PayloadError(
            f"a {header.kind.name.lower()} of round {header.round} for version {header.version}: "
            f"expected a downlink of round {number} for version {state.version}"
        )
    return delta


def laid(memory: MethodState) -> dict[str, torch.Tensor]:
    """A method's state, every tensor at an address like any other's (`core.tensors.aligned`)."""
    return {name: aligned(tensor) for name, tensor in memory.items()}


def _close(
    config: FederationConfig, state: GlobalState, memory: MethodState, clients: int, count: int, update: _Update
) -> Closed:
    number = state.version + 1
    began = time.perf_counter()
    codec = Codec(config.downlink_table(count), config.downlink, rng.integer(config.seed, "rounding", number))
    context = ServerContext(number, config.seed, clients, laid(memory), codec.received, config.optimizer)
    try:
        made, kept = update(context)
    except UNABLE as error:
        raise FederationError(f"round {number}: no broadcast can be made: {error}; state kept") from None
    if not wire.is_finite(made):
        raise FederationError(f"round {number}: the aggregate has NaN or infinite values; state kept")
    aggregated = time.perf_counter()
    try:
        payload = codec.payload(made, wire.Kind.DOWNLINK, number, state.version)
    except ValueError as error:
        raise FederationError(f"round {number}: the broadcast cannot be sent: {error}; state kept") from None
    # The state moves by what travels, as the clients will read it.
    sent = read_broadcast(config, state, payload, count)
    try:
        following = _applied(config, state, sent)
    except UNABLE as error:
        raise FederationError(f"round {number}: the broadcast cannot be applied: {error}; state kept") from None
    if not _finite(following.tensors, following.base_delta, kept):
        raise FederationError(f"round {number}: the next state has NaN or infinite values; state kept")
    seconds = {"server": aggregated - began, "broadcast": time.perf_counter() - aggregated}
    return Closed(payload, sent, following, kept, seconds)


def _finite(*groups: Tensors) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for group in groups for tensor in group.values())


def _applied(config: FederationConfig, state: GlobalState, delta: Delta) -> GlobalState:
    return config.method.apply(state, delta, RoundContext(state.version + 1, config.seed))


def _laid(contribution: Contribution) -> Contribution:
    # Updates that lie on the disk are placed when they are read.
    if not isinstance(contribution.delta, dict):
        return contribution
    delta = {
        name: SparseTensor(sparse.shape, sparse.positions, aligned(sparse.values), sparse.draw)
        for name, sparse in contribution.delta.items()
    }
    return Contribution(contribution.client, delta, contribution.weight, contribution.rank)

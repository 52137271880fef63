"""Payload lengths before there is an update: every method's own code and the real encoder, on a small sample.

What a tensor costs grows with its elements, so it is measured on modules of at most `WIDEST` features with synthetic
changes, and scaled. Only one thing about real updates is assumed: the density that an adaptive ratio comes to. The
paper reports 5.2 %; runs of the embedded model start near 9 % and fall below 5 % (docs/bytes.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsrd import methods, rng
from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import LoraModule
from fedsrd.core.tensors import Delta, GlobalState, Tensors, TensorTable, initial_tensors
from fedsrd.methods import ClientContext, Contribution, Method, MethodState, ServerContext, ServerOptimizer
from fedsrd.methods.method import Received, as_it_is
from fedsrd.wire import Kind, WireOptions, encode_delta, quantise

Array = np.ndarray[Any, Any]

WIDEST = 1024
MOST_CLIENTS = 32
"""Beyond, a broadcast is measured with so many clients; only stacked ones would grow further, and they are scaled."""
FILLING = 2
"""Rounds after which what clients keep for later (error feedback) has come to about what it stays at."""
SPREAD = 0.6
"""Of the logarithms of the norms of B's columns."""
STEPS = 4
"""Of the synthetic local training."""
PAPER = WireOptions(values="float32", positions="bitmap", exponents="raw")
"""What the paper counts: float32 values and one bit a parameter."""


@dataclass(frozen=True)
class Wires:
    """How both directions are written."""

    up: WireOptions
    down: WireOptions


@dataclass(frozen=True)
class Cost:
    """A client's payload lengths in a round, in bytes, the mean of an odd and an even round."""

    up: float
    down: float


def options_for(name: str, density: float) -> dict[str, object]:
    """A method's options for planning: an adaptive ratio is replaced by the density that it is expected to come to."""
    ratio = methods.get(name).Options.model_fields.get("ratio")
    adaptive = ratio is not None and ratio.default == "adaptive"
    return {"ratio": "fixed", "alpha": 1.0 - density, "upper": 0.9999} if adaptive else {}


def costs(name: str, table: TensorTable, clients: int, wires: Sequence[WireOptions], density: float) -> list[Cost]:
    """What one client sends and gets in a round of a method, one cost for each of `wires`.

    Args:
        name: the method's.
        table: the adapter's tensors.
        clients: that take part in a round.
        wires: how both directions are written.
        density: share of elements that an adaptive ratio keeps.
    """
    kind = methods.get(name)
    method = kind(kind.Options(**options_for(name, density)))
    return costs_of(method, table, clients, [Wires(wire, wire) for wire in wires])


def costs_of(
    method: Method, table: TensorTable, clients: int, wires: Sequence[Wires], widest: int = WIDEST
) -> list[Cost]:
    """The same of a method with options of its own, and of directions that are written differently.

    Args:
        method: with its options; a ratio that is "adaptive" is that of the synthetic changes.
        table: the adapter's tensors.
        clients: that take part in a round.
        wires: how the directions are written.
        widest: features of the modules that are measured; fewer are faster.
    """
    up, down = [0.0] * len(wires), [0.0] * len(wires)
    # A stacked broadcast has as many blocks as clients.
    more = max(clients / MOST_CLIENTS, 1.0)
    for place, sample in _samples(method, table, min(clients, MOST_CLIENTS), wires, widest):
        up[place] += sample.length(wires[place].up, uplink=True) / 2
        down[place] += sample.length(wires[place].down, uplink=False) * (more if sample.stacked else 1.0) / 2
    return [Cost(*lengths) for lengths in zip(up, down, strict=True)]


def _samples(
    method: Method, table: TensorTable, clients: int, wires: Sequence[Wires], widest: int
) -> Iterator[tuple[int, "_Sample"]]:
    """For each wire's place a sample after an odd and one after an even round, to be measured before the next."""
    if not method.keeps_client_state:
        for number in (1, 2):
            sample = _Sample(method, table, clients, None, widest)
            sample.round(number)
            yield from ((place, sample) for place in range(len(wires)))
        return
    for place, wire in enumerate(wires):
        # What is kept for later depends on what the number type loses.
        sample = _Sample(method, table, clients, wire, widest)
        for number in range(1, FILLING + 3):
            sample.round(number)
            if number > FILLING:
                yield place, sample


class _Sample:
    """Rounds of a method on two modules of every shape, no wider than `widest`. The state stays where it is, as the
    payloads of another would be alike; memories fill by what `wires` lose, nothing where there is none.
    """

    def __init__(self, method: Method, table: TensorTable, clients: int, wires: Wires | None, widest: int) -> None:
        self._method = method
        self._wires = wires
        self._widest = widest
        self._modules = lora.modules_of(table)
        shapes = sorted({self._narrowed(module) for module in self._modules})
        self._names = {shape: (f"{place}.a", f"{place}.b") for place, shape in enumerate(shapes)}
        small = lora.table_of(LoraModule(name, *shape) for shape, names in self._names.items() for name in names)
        held = method.state_table(small)
        real = method.state_table(table)
        self._up_tables = method.uplink_table(held), method.uplink_table(real)
        self._down_tables = method.downlink_table(held, clients), method.downlink_table(real, clients)
        self.stacked = self._down_tables[0] != held
        random = np.random.default_rng(0)
        tensors = {
            name: torch.from_numpy(_columns(tensor.shape, random)).float() if lora.split(name)[1] == "B" else tensor
            for name, tensor in initial_tensors(held, 0).items()
        }
        self._random = random
        self._tensors = tensors
        self._memories: list[MethodState] = [{} for _ in range(clients)]
        self._server_memory: MethodState = {}
        self._up: Delta = {}
        self._down: Delta = {}

    def _narrowed(self, module: LoraModule) -> tuple[int, int, int]:
        return min(module.out_features, self._widest), min(module.in_features, self._widest), module.rank

    def round(self, number: int) -> None:
        """The round of this number, of all clients."""
        method, clients = self._method, len(self._memories)
        state = GlobalState(self._tensors, {}, number - 1)
        contributions = []
        for place, memory in enumerate(self._memories):
            received = self._receiver(self._up_tables[0], number, place)
            context = ClientContext(number, 0, f"client-{place}", None, memory, received)
            plan = method.local_plan(state, context)
            after = _trained(plan, self._random)
            delta, self._memories[place] = method.client_update(plan, after, context)
            contributions.append(Contribution(context.client, received(delta), 1 / clients))
            self._up = delta if place == 0 else self._up
        own = method.default_optimizer
        optimizer = None if own is None else ServerOptimizer(own)
        received = self._receiver(self._down_tables[0], number)
        server = ServerContext(number, 0, clients, self._server_memory, received, optimizer=optimizer)
        self._down, self._server_memory = method.server_update(state, contributions, server)

    def _receiver(self, table: TensorTable, *who: int) -> Received:
        """What the other side decodes; without a wire all of it. Everybody rounds on a stream of its own."""
        if self._wires is None:
            return as_it_is
        # A server is told of no client (`who` is the round and the client).
        wire = self._wires.up if len(who) > 1 else self._wires.down
        return lambda delta: quantise(delta, table, wire, rng.integer(0, "rounding", *who)).delta()

    def length(self, wire: WireOptions, *, uplink: bool) -> float:
        """Bytes of the payload for the whole adapter."""
        delta, (small, real) = (self._up, self._up_tables) if uplink else (self._down, self._down_tables)
        kind = Kind.UPLINK if uplink else Kind.DOWNLINK

        def measure(modules: tuple[str, ...], suffix: str) -> int:
            chosen = TensorTable(tuple(spec for spec in small.specs if _module(spec.name) in modules))
            part: Delta = {
                name: sparse
                for name, sparse in delta.items()
                if _module(name) in modules and name.removeprefix(_module(name)) == suffix
            }
            return len(encode_delta(part, chosen, kind, 1, 0, wire, 0))

        total = float(len(encode_delta({}, TensorTable(()), kind, 1, 0, wire, 0)))
        sizes = {spec.name: spec.elements for spec in small.specs}
        reals = {spec.name: spec.elements for spec in real.specs}
        for shape, (first, second) in self._names.items():
            for suffix in [name.removeprefix(first) for name in delta if _module(name) == first]:
                bytes_an_element = (measure((first, second), suffix) - measure((first,), suffix)) / sizes[
                    first + suffix
                ]
                same = [module.name for module in self._modules if self._narrowed(module)[:2] == shape[:2]]
                total += bytes_an_element * sum(reals[name + suffix] for name in same)
        return total


def _module(name: str) -> str:
    """The sample's module that a tensor belongs to: the first two parts of its name."""
    return ".".join(name.split(".")[:2])


def _trained(plan: LocalPlan, random: np.random.Generator) -> Tensors:
    after = {
        name: tensor + torch.from_numpy(_adam(tensor.shape, random)).float() if name in plan.trained else tensor
        for name, tensor in plan.start.items()
    }
    if plan.gradient_hook is not None:
        plan.gradient_hook(
            {name: torch.from_numpy(random.standard_normal(plan.start[name].shape)).float() for name in plan.trained}
        )
    return after


def _columns(shape: Sequence[int], random: np.random.Generator) -> Array:
    """A B after some rounds: columns of different norms, so that importance gathers in some rank components."""
    spread: Array = np.exp(SPREAD * random.standard_normal(shape[1]))
    return 1e-3 * random.standard_normal(shape) * spread


def _adam(shape: Sequence[int], random: np.random.Generator) -> Array:
    """The change by a few steps of Adam on gradients of signal and noise: far from normal, most elements move alike.

    The signal's strength differs between rank components. Median and spread are such that lengths come within 3 % of
    those of real updates in every number type (docs/bytes.md).
    """
    components = int(np.argmin(shape))
    strength = 0.2 * np.exp(1.1 * random.standard_normal(shape[components]))
    signal = random.standard_normal(shape) * np.expand_dims(strength, 1 - components)
    first, second, moved = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for step in range(1, STEPS + 1):
        gradient = signal + random.standard_normal(shape)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved -= 5e-4 * (first / (1 - 0.9**step)) / np.sqrt(second / (1 - 0.999**step))
    return moved

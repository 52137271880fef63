"""Payload lengths before there is an update: every method's own code and the real encoder, on a small sample.

What a tensor costs grows with its elements, so it is measured on modules of at most `WIDEST` features with synthetic
changes, and scaled. Only one thing about real updates is assumed: the density that an adaptive ratio comes to. The
paper reports 5.2 %; runs of the embedded model start near 9 % and fall below 5 % (docs/bytes.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsrd import methods
from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import LoraModule
from fedsrd.core.tensors import Delta, GlobalState, Tensors, TensorTable, initial_tensors
from fedsrd.methods import ClientContext, Contribution, Method, ServerContext, ServerOptimizer
from fedsrd.wire import Kind, WireOptions, encode_delta

Array = np.ndarray[Any, Any]

WIDEST = 1024
MOST_CLIENTS = 32
"""Beyond, a broadcast is measured with so many clients; only stacked ones would grow further, and they are scaled."""
SPREAD = 0.6
"""Of the logarithms of the norms of B's columns."""
STEPS = 4
"""Of the synthetic local training."""
PAPER = WireOptions(values="float32", positions="bitmap", exponents="raw")
"""What the paper counts: float32 values and one bit a parameter."""


@dataclass(frozen=True)
class Cost:
    """A client's payload lengths in a round, in bytes, the mean of an odd and an even round."""

    up: float
    down: float


def options_for(name: str, density: float) -> dict[str, object]:
    """A method's options for planning: an adaptive ratio is replaced by the density that it is expected to come to."""
    fields = methods.get(name).Options.model_fields
    return {"ratio": "fixed", "alpha": 1.0 - density, "upper": 0.9999} if "ratio" in fields else {}


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
    samples = [_Sample(method, table, min(clients, MOST_CLIENTS), round_number) for round_number in (1, 2)]
    found = []
    for wire in wires:
        up = down = 0.0
        for sample in samples:
            up += sample.length(wire, uplink=True) / 2
            # A stacked broadcast has as many blocks as clients.
            grows = sample.stacked
            down += sample.length(wire, uplink=False) * (max(clients / MOST_CLIENTS, 1.0) if grows else 1.0) / 2
        found.append(Cost(up, down))
    return found


class _Sample:
    """One round of a method on two modules of every shape, no wider than `WIDEST`."""

    def __init__(self, method: Method, table: TensorTable, clients: int, round_number: int) -> None:
        self._modules = lora.modules_of(table)
        shapes = sorted({_narrowed(module) for module in self._modules})
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
        state = GlobalState(tensors, {}, round_number - 1)
        contributions = []
        for number in range(clients):
            context = ClientContext(round_number, 0, f"client-{number}")
            plan = method.local_plan(state, context)
            after = _trained(plan, random)
            delta, _ = method.client_update(plan, after, context)
            contributions.append(Contribution(context.client, delta, 1 / clients))
        self._up = contributions[0].delta
        own = method.default_optimizer
        server = ServerContext(round_number, 0, clients, optimizer=None if own is None else ServerOptimizer(own))
        self._down, _ = method.server_update(state, contributions, server)

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
                same = [module.name for module in self._modules if _narrowed(module)[:2] == shape[:2]]
                total += bytes_an_element * sum(reals[name + suffix] for name in same)
        return total


def _module(name: str) -> str:
    """The sample's module that a tensor belongs to: the first two parts of its name."""
    return ".".join(name.split(".")[:2])


def _narrowed(module: LoraModule) -> tuple[int, int, int]:
    return min(module.out_features, WIDEST), min(module.in_features, WIDEST), module.rank


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

"""Payload lengths before there is an update: every method's own code and the real encoder, on a small sample.

What a slot costs grows with its elements, so it is measured on modules of at most `WIDEST` features with synthetic
changes, and scaled. Only one thing about real updates is assumed: the density that an adaptive ratio comes to. The
paper reports 5.2 %; runs of the embedded model start near 9 % and fall below 5 % (docs/bytes.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsrd import methods
from fedsrd.core.factors import FACTORS, Delta, Factor, Factors, LoraPair, ModuleShape, ShapeTable, initial_factors
from fedsrd.methods import ClientStep, Method, ServerStep
from fedsrd.wire import Coding, Kind, encode_delta

Array = np.ndarray[Any, Any]

WIDEST = 1024
MOST_CLIENTS = 32
"""Beyond, a broadcast is measured with so many clients; only stacked ones would grow further, and they are scaled."""
SPREAD = 0.6
"""Of the logarithms of the norms of B's columns."""
STEPS = 4
"""Of the synthetic local training."""
PAPER = Coding(values="float32", positions="bitmap", exponents="raw")
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


def costs(name: str, table: ShapeTable, clients: int, codings: Sequence[Coding], density: float) -> list[Cost]:
    """What one client sends and gets in a round of a method, by coding.

    Args:
        name: the method's.
        table: the adapted modules.
        clients: that take part in a round.
        codings: of both directions.
        density: share of elements that an adaptive ratio keeps.
    """
    kind = methods.get(name)
    method = kind(kind.Options(**options_for(name, density)))
    samples = [_Sample(method, table, min(clients, MOST_CLIENTS), round_number) for round_number in (1, 2)]
    found = []
    for coding in codings:
        up = down = 0.0
        for sample in samples:
            up += sample.length(coding, uplink=True) / 2
            # A stacked broadcast has as many blocks as clients.
            grows = sample.wire != sample.table
            down += sample.length(coding, uplink=False) * (max(clients / MOST_CLIENTS, 1.0) if grows else 1.0) / 2
        found.append(Cost(up, down))
    return found


class _Sample:
    """One round of a method on two modules of every shape, no wider than `WIDEST`."""

    def __init__(self, method: Method, table: ShapeTable, clients: int, round_number: int) -> None:
        shapes = {_narrowed(module) for module in table.modules}
        self._real = table
        self._names = {shape: (f"{place}.a", f"{place}.b") for place, shape in enumerate(sorted(shapes))}
        self.table = ShapeTable(
            tuple(ModuleShape(name, *shape) for shape, names in self._names.items() for name in names)
        )
        self.wire = method.downlink_table(self.table, clients)
        self._stacked = method.downlink_table(table, clients)
        random = np.random.default_rng(0)
        state = {
            name: LoraPair(torch.from_numpy(_columns(pair.B.shape, random)).float(), pair.A)
            for name, pair in initial_factors(self.table, 0).items()
        }
        deltas = []
        for client in range(clients):
            step = ClientStep(round_number, f"client-{client}", 0)
            before = method.local_start(state, step)
            after = _trained(before, method.trained(round_number), random)
            deltas.append(method.client_update(before, after, step))
        self._up = deltas[0]
        self._down = method.server_update(state, deltas, [1 / clients] * clients, ServerStep(round_number, 0))

    def length(self, coding: Coding, *, uplink: bool) -> float:
        """Bytes of the payload for the whole adapter."""
        delta, table = (self._up, self.table) if uplink else (self._down, self.wire)
        real = self._real if uplink else self._stacked
        kind = Kind.UPLINK if uplink else Kind.DOWNLINK

        def measure(names: tuple[str, ...], factor: Factor) -> tuple[int, int]:
            chosen = ShapeTable(tuple(module for module in table.modules if module.name in names))
            part: Delta = {slot: s for slot, s in delta.items() if slot.module in names and slot.factor == factor}
            elements = sum(rows * columns for rows, columns in (chosen.shapes[slot] for slot in part))
            return len(encode_delta(part, chosen, kind, 1, 0, coding, 0)), elements

        empty = len(encode_delta({}, ShapeTable(()), kind, 1, 0, coding, 0))
        total = float(empty)
        for shape, (first, second) in self._names.items():
            for factor in FACTORS:
                one, _ = measure((first,), factor)
                two, elements = measure((first, second), factor)
                if not elements:
                    continue
                bytes_an_element = (two - one) / (elements / 2)
                total += bytes_an_element * sum(_elements(real, shape, factor))
        return total


def _narrowed(module: ModuleShape) -> tuple[int, int, int]:
    return min(module.out_features, WIDEST), min(module.in_features, WIDEST), module.rank


def _elements(table: ShapeTable, shape: tuple[int, int, int], factor: Factor) -> Iterator[int]:
    for module in table.modules:
        features = module.out_features if factor == "B" else module.in_features
        if _narrowed(module)[:2] == shape[:2]:
            yield features * module.rank


def _trained(before: Factors, trained: Sequence[Factor], random: np.random.Generator) -> Factors:
    after = {}
    for name, pair in before.items():
        moved = [
            tensor + torch.from_numpy(_adam(tensor.shape, random)).float() if factor in trained else tensor
            for factor, tensor in zip(FACTORS, pair, strict=True)
        ]
        after[name] = LoraPair(*moved)
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

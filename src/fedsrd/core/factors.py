"""LoRA factors and their sparse changes, by module name.

A LoRA-adapted linear layer has weight W0 + scale * B A with A (rank, in_features) and B (out_features, rank)
(Hu et al., arXiv 2106.09685). Only A and B are learnt, and only their changes ("deltas") cross the network.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsrd import rng

Factor = Literal["B", "A"]
FACTORS: tuple[Factor, Factor] = ("B", "A")


class LoraPair(NamedTuple):
    """The two factors of one module: B (out_features, rank) and A (rank, in_features), float32."""

    B: Tensor
    A: Tensor


Factors = Mapping[str, LoraPair]

Base = Mapping[str, Tensor]
"""Change of the frozen weights by module, (out_features, in_features) float32, in units of B A: the model's weight is
W0 + scale (change + B A). Empty for the methods that leave the base model as it is, which most do."""


class ModuleShape(NamedTuple):
    """One adapted module: its name in the base model and its sizes."""

    name: str
    out_features: int
    in_features: int
    rank: int


class Slot(NamedTuple):
    """One factor of one module: the unit that deltas, masks and payloads are made of."""

    module: str
    factor: Factor


@dataclass(frozen=True)
class ShapeTable:
    """What both ends know before anything travels: the adapted modules in order, and so every tensor's shape.

    >>> table = ShapeTable((ModuleShape("q_proj", 6, 4, 2),))
    >>> dict(table.shapes)
    {Slot(module='q_proj', factor='B'): (6, 2), Slot(module='q_proj', factor='A'): (2, 4)}
    >>> table.elements
    20
    """

    modules: tuple[ModuleShape, ...]

    @property
    def shapes(self) -> dict[Slot, tuple[int, int]]:
        """Every slot's shape, in the order of the wire: module by module, B before A."""
        found: dict[Slot, tuple[int, int]] = {}
        for module in self.modules:
            found[Slot(module.name, "B")] = (module.out_features, module.rank)
            found[Slot(module.name, "A")] = (module.rank, module.in_features)
        return found

    @property
    def elements(self) -> int:
        """Number of LoRA parameters in all."""
        return sum((m.out_features + m.in_features) * m.rank for m in self.modules)

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the table: equal exactly when names, order, shapes and ranks are equal."""
        hasher = hashlib.blake2b(digest_size=16, person=b"fedsrd-shapes")
        for name, *sizes in self.modules:
            raw = name.encode()
            hasher.update(struct.pack("<4Q", len(raw), *sizes) + raw)
        return hasher.digest()

    @classmethod
    def of(cls, factors: "Factors") -> "ShapeTable":
        """The table that these factors fit."""
        return cls(
            tuple(
                ModuleShape(name, pair.B.shape[0], pair.A.shape[1], pair.A.shape[0]) for name, pair in factors.items()
            )
        )


class Draw(NamedTuple):
    """A random choice of elements that needs no list: whoever has the seed draws the same ones.

    Attributes:
        seed: 0 <= seed < 2**64; one for every choice that is to be independent.
        keep: probability of each element, 0 < keep < 1.
    """

    seed: int
    keep: float

    def positions(self, slot: Slot, elements: int) -> Tensor:
        """The chosen elements of one slot: int64, strictly increasing, the same on every platform."""
        mask = rng.keep_mask(elements, self.keep, self.seed, "mask", slot.module, slot.factor)
        return torch.from_numpy(np.flatnonzero(mask))


@dataclass(frozen=True, slots=True, eq=False)
class SparseTensor:
    """Some elements of a matrix; all others are zero.

    Attributes:
        shape: (rows, columns) of the matrix.
        positions: (count,) int64, row-major, strictly increasing; None when every element is there.
        values: (count,) float32, in the order of the positions.
        draw: how the positions were drawn, where they were: then a payload need not list them.
    """

    shape: tuple[int, int]
    positions: Tensor | None
    values: Tensor
    draw: Draw | None = None

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def count(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        """The whole matrix: `shape`, with the values' dtype and device."""
        if self.positions is None:
            return self.values.reshape(self.shape)
        flat = self.values.new_zeros(self.elements)
        flat[self.positions] = self.values
        return flat.reshape(self.shape)

    @classmethod
    def from_mask(cls, matrix: Tensor, mask: Tensor) -> "SparseTensor":
        """The elements of `matrix` where the bool `mask` (same shape) is True."""
        flat = mask.reshape(-1)
        if flat.device.type == "cpu":
            positions = torch.from_numpy(np.flatnonzero(flat.numpy()))  # three times as fast as torch's
        else:
            positions = flat.nonzero().squeeze(1)
        return cls(_shape(matrix), positions, matrix.reshape(-1)[positions])

    @classmethod
    def from_draw(cls, matrix: Tensor, slot: Slot, draw: Draw) -> "SparseTensor":
        """The elements of `matrix`, which is `slot`'s, that `draw` chooses; zeros too."""
        positions = draw.positions(slot, matrix.numel()).to(matrix.device)
        return cls(_shape(matrix), positions, matrix.reshape(-1)[positions], draw)

    @classmethod
    def from_dense(cls, matrix: Tensor) -> "SparseTensor":
        """Every element of `matrix`, zeros too."""
        return cls(_shape(matrix), None, matrix.reshape(-1))


Delta = Mapping[Slot, SparseTensor]
"""A change of the factors. A slot that is not there does not change."""


def _shape(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns


def initial_factors(table: ShapeTable, seed: int) -> dict[str, LoraPair]:
    """The common start that both ends expand from a seed: B = 0 and A uniform in +-1/sqrt(in_features), as PEFT's.

    >>> start = initial_factors(ShapeTable((ModuleShape("q_proj", 6, 4, 2),)), seed=0)
    >>> start["q_proj"].A.shape, bool(start["q_proj"].B.any())
    (torch.Size([2, 4]), False)
    """
    start = {}
    for module in table.modules:
        bound = rng.kaiming_bound(module.in_features)
        values = rng.uniform(module.rank * module.in_features, bound, seed, "initial A", module.name)
        start[module.name] = LoraPair(
            torch.zeros(module.out_features, module.rank),
            torch.from_numpy(values).reshape(module.rank, module.in_features),
        )
    return start


def slots(factors: Factors) -> Iterator[tuple[Slot, Tensor]]:
    """Every factor with its slot, in the order of `factors`, B before A."""
    for name, pair in factors.items():
        for factor in FACTORS:
            yield Slot(name, factor), getattr(pair, factor)


def add(factors: Factors, delta: Delta) -> dict[str, LoraPair]:
    """The factors plus a sparse delta. What the delta does not touch is shared with the input, not copied.

    One float32 addition an element, so that every replica that adds the same delta holds the same bits.

    Raises:
        KeyError: the delta names a module that the factors lack.
    """
    result = dict(factors)
    for slot, sparse in delta.items():
        moved = getattr(result[slot.module], slot.factor).clone(memory_format=torch.contiguous_format)
        if sparse.positions is None:
            moved += sparse.dense()
        else:
            moved.view(-1)[sparse.positions] += sparse.values
        result[slot.module] = result[slot.module]._replace(**{slot.factor: moved})
    return result


def add_base(base: Base, change: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The base's change plus one more, module by module; what is not touched is shared with the input, not copied."""
    result = dict(base)
    for module, tensor in change:
        result[module] = result[module] + tensor if module in result else tensor
    return result


def difference(after: Factors, before: Factors) -> Iterator[tuple[Slot, Tensor]]:
    """After - before, dense float32, one slot at a time: no copy of the whole adapter is made."""
    for slot, tensor in slots(after):
        yield slot, tensor - getattr(before[slot.module], slot.factor)


def dense_delta(after: Factors, before: Factors) -> dict[Slot, SparseTensor]:
    """After - before, every element of it."""
    return {slot: SparseTensor.from_dense(delta) for slot, delta in difference(after, before)}


def add_weighted(total: Tensor, slot: Slot, deltas: Sequence[Delta], weights: Sequence[float]) -> Tensor:
    """Adds sum_i weight_i delta_i of one slot to the contiguous `total`, in place; what was not sent counts as zero."""
    for delta, weight in zip(deltas, weights, strict=True):
        sparse = delta.get(slot)
        if sparse is None or not sparse.count:
            continue
        if sparse.positions is None:
            total.view(-1).add_(sparse.values, alpha=weight)
        else:
            total.view(-1).index_add_(0, sparse.positions, sparse.values, alpha=weight)
    return total


def average(factors: Factors, deltas: Sequence[Delta], weights: Sequence[float]) -> dict[Slot, SparseTensor]:
    """sum_i weight_i delta_i of every slot that somebody sent: the average of B and of A, each on its own.

    Sparse where every delta is: with the elements that anybody sent; a slot whole in one of them is whole.

    Args:
        factors: what the deltas change, for the shapes.
        deltas: at least one.
        weights: one a delta, with sum 1.
    """
    mean = {}
    for slot, tensor in slots(factors):
        sent = [delta[slot] for delta in deltas if slot in delta]
        if not sent:
            continue
        zero = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        total = add_weighted(zero, slot, deltas, weights)
        if any(sparse.positions is None for sparse in sent):
            mean[slot] = SparseTensor.from_dense(total)
            continue
        touched = torch.zeros(total.numel(), dtype=torch.bool)
        for sparse in sent:
            touched[sparse.positions] = True
        mean[slot] = SparseTensor.from_mask(total, touched.view_as(total))
    return mean


def digest(factors: Factors, base: Base | None = None) -> str:
    """SHA-256 over names, shapes and float32 bits, in hex: equal exactly when two replicas are equal bit for bit."""
    hasher = hashlib.sha256()
    named = [(f"{slot.module}/{slot.factor}", tensor) for slot, tensor in slots(factors)]
    named += [(f"{module}/base", tensor) for module, tensor in (base or {}).items()]
    for name, tensor in named:
        raw = name.encode()
        hasher.update(struct.pack("<3Q", len(raw), *tensor.shape) + raw)
        hasher.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return hasher.hexdigest()

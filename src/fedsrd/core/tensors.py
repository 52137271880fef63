"""What is trained, as named tensors: their table, their sparse changes, and the global state.

A federation trains a fixed list of tensors, known to both ends before anything travels (`TensorTable`). For LoRA these
are the factors B and A of every adapted layer (`core.lora` has that view); any other list of tensors goes the same way.
Only changes of them ("deltas") cross the network.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsrd import rng

Role = Literal["lora_B", "lora_A", "plain"]
Shape = tuple[int, ...]
Tensors = Mapping[str, Tensor]
"""Tensors by name, float32, in the order of a table."""
BaseDelta = Mapping[str, Tensor]
"""Change of the frozen weights by module, (out_features, in_features) float32, in units of B A: the model's weight is
W0 + scale (change + B A). Empty for the methods that leave the base model as it is, which most do."""

ALIGNMENT = 64
"""Bytes; what torch's own CPU allocations are aligned to."""

_SUFFIXES: Mapping[str, Role] = {".lora_B.weight": "lora_B", ".lora_A.weight": "lora_A"}


def aligned(tensor: Tensor) -> Tensor:
    """The tensor's values, contiguous, at an address that is a multiple of 64 bytes: itself where it lies so, else a
    copy.

    The bits of a matrix product depend on where its operands lie in memory: vectorised kernels peel off what precedes
    an aligned address, and sum in another order (seen with MKL on AMD EPYC). Whatever comes from a file or the network
    may lie anywhere, so it goes through here before it meets arithmetic whose result enters the state.

    >>> moved = torch.arange(9.0)[1:]
    >>> moved.data_ptr() % 64, aligned(moved).data_ptr() % 64
    (4, 0)
    """
    whole = tensor.detach().contiguous()
    if whole.data_ptr() % ALIGNMENT == 0:
        return whole
    return whole.clone(memory_format=torch.contiguous_format)


class TensorSpec(NamedTuple):
    """One trained tensor.

    Attributes:
        name: in the model, without PEFT's prefix, such as "layers.0.q_proj.lora_B.weight".
        shape: of any number of dimensions.
        role: what it is in the model: a LoRA factor, or "plain".
    """

    name: str
    shape: Shape
    role: Role = "plain"

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @classmethod
    def named(cls, name: str, shape: Sequence[int]) -> "TensorSpec":
        """The spec with the role that the name of a matrix says; anything else is plain.

        >>> TensorSpec.named("q.lora_A.weight", (2, 4)).role
        'lora_A'
        """
        roles = (role for suffix, role in _SUFFIXES.items() if name.endswith(suffix) and len(shape) == 2)
        return cls(name, tuple(shape), next(roles, "plain"))


@dataclass(frozen=True)
class TensorTable:
    """What both ends know before anything travels: the trained tensors, in the order of the wire.

    >>> table = TensorTable((TensorSpec("scale", (3,)), TensorSpec("q.lora_B.weight", (6, 2), "lora_B")))
    >>> table.shapes, table.elements
    ({'scale': (3,), 'q.lora_B.weight': (6, 2)}, 15)
    """

    specs: tuple[TensorSpec, ...]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every tensor's shape by name, in order."""
        return {spec.name: spec.shape for spec in self.specs}

    @cached_property
    def elements(self) -> int:
        """Number of trained parameters in all."""
        return sum(spec.elements for spec in self.specs)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for the table: equal exactly when names, order, roles and shapes are equal."""
        hasher = hashlib.blake2b(digest_size=16, person=b"fedsrd-tensors")
        for spec in self.specs:
            for text in (spec.name, spec.role):
                raw = text.encode()
                hasher.update(struct.pack("<Q", len(raw)) + raw)
            hasher.update(struct.pack(f"<{len(spec.shape) + 1}Q", len(spec.shape), *spec.shape))
        return hasher.digest()

    @classmethod
    def of(cls, tensors: Tensors) -> "TensorTable":
        """The table that these tensors fit, roles by their names."""
        return cls(tuple(TensorSpec.named(name, tensor.shape) for name, tensor in tensors.items()))


class Draw(NamedTuple):
    """A random choice of elements that needs no list: whoever has the seed draws the same ones.

    Attributes:
        seed: 0 <= seed < 2**64; one for every choice that is to be independent.
        keep: probability of each element, 0 < keep < 1.
        first: where the range of that length begins in [0, 1): draws of one seed whose ranges do not overlap have no
            element in common, and those that fill [0, 1) divide all elements among them. The range from `first` to
            first + keep must lie within [0, 1].
    """

    seed: int
    keep: float
    first: float = 0.0

    def positions(self, name: str, elements: int) -> Tensor:
        """The chosen elements of the tensor `name`: int64, strictly increasing, the same on every platform."""
        mask = rng.keep_mask(elements, self.keep, self.seed, "mask", name, first=self.first)
        return torch.from_numpy(np.flatnonzero(mask))


@dataclass(frozen=True, slots=True, eq=False)
class SparseTensor:
    """Some elements of a tensor; all others are zero.

    Attributes:
        shape: of the tensor.
        positions: (count,) int64, row-major, strictly increasing; None when every element is there.
        values: (count,) float32, in the order of the positions.
        draw: how the positions were drawn, where they were: then a payload need not list them.
    """

    shape: Shape
    positions: Tensor | None
    values: Tensor
    draw: Draw | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        """The whole tensor: `shape`, with the values' dtype and device."""
        if self.positions is None:
            return self.values.reshape(self.shape)
        flat = self.values.new_zeros(self.elements)
        flat[self.positions] = self.values
        return flat.reshape(self.shape)

    def scaled(self, factor: float) -> "SparseTensor":
        """Every value times `factor`."""
        return self if factor == 1.0 else SparseTensor(self.shape, self.positions, self.values * factor, self.draw)

    @classmethod
    def from_mask(cls, tensor: Tensor, mask: Tensor) -> "SparseTensor":
        """The elements of `tensor` where the bool `mask` (same shape) is True."""
        flat = mask.reshape(-1)
        if flat.device.type == "cpu":
            positions = torch.from_numpy(np.flatnonzero(flat.numpy()))  # three times as fast as torch's
        else:
            positions = flat.nonzero().squeeze(1)
        return cls(tuple(tensor.shape), positions, tensor.reshape(-1)[positions])

    @classmethod
    def from_draw(cls, tensor: Tensor, name: str, draw: Draw) -> "SparseTensor":
        """The elements of `tensor`, which is called `name`, that `draw` chooses; zeros too."""
        positions = draw.positions(name, tensor.numel()).to(tensor.device)
        return cls(tuple(tensor.shape), positions, tensor.reshape(-1)[positions], draw)

    @classmethod
    def from_dense(cls, tensor: Tensor) -> "SparseTensor":
        """Every element of `tensor`, zeros too."""
        return cls(tuple(tensor.shape), None, tensor.reshape(-1))


Delta = Mapping[str, SparseTensor]
"""A change of some tensors, by name. One that is not there does not change."""


@dataclass(frozen=True, eq=False)
class GlobalState:
    """What server and clients hold alike, bit for bit, after `version` rounds.

    Attributes:
        tensors: the trained tensors; with a method's own replicated ones (`Method.state_table`).
        base_delta: the change of the frozen weights; empty for most methods.
        version: how many rounds it holds.
    """

    tensors: Tensors
    base_delta: BaseDelta = field(default_factory=dict)
    version: int = 0

    def __post_init__(self) -> None:
        # States come out of files and payloads too: here they all get to lie alike.
        object.__setattr__(self, "tensors", {name: aligned(tensor) for name, tensor in self.tensors.items()})
        object.__setattr__(self, "base_delta", {name: aligned(tensor) for name, tensor in self.base_delta.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and float32 bits, in hex: equal exactly when two states are equal bit for bit.
        The version is not part of it. Computed once.
        """
        return digest(self.tensors, self.base_delta)

    def following(self, tensors: Tensors, base_delta: BaseDelta | None = None) -> "GlobalState":
        """The next version, with these tensors and this change of the base (None: the same as now)."""
        return GlobalState(tensors, self.base_delta if base_delta is None else base_delta, self.version + 1)


def initial_tensors(table: TensorTable, seed: int) -> dict[str, Tensor]:
    """The common start that both ends expand from a seed: LoRA's B = 0 and A uniform in +-1/sqrt(in_features), as
    PEFT's; every other tensor zero.

    >>> start = initial_tensors(TensorTable((TensorSpec("q.lora_A.weight", (2, 4), "lora_A"),)), seed=0)
    >>> start["q.lora_A.weight"].shape
    torch.Size([2, 4])
    """
    start = {}
    for spec in table.specs:
        if spec.role == "lora_A":
            module = spec.name.removesuffix(".lora_A.weight")
            values = rng.uniform(spec.elements, rng.kaiming_bound(spec.shape[1]), seed, "initial A", module)
            start[spec.name] = aligned(torch.from_numpy(values).reshape(spec.shape))
        else:
            start[spec.name] = torch.zeros(spec.shape)
    return start


def add(tensors: Tensors, delta: Delta) -> dict[str, Tensor]:
    """The tensors plus a sparse delta. What the delta does not touch is shared with the input, not copied.

    One float32 addition an element, so that every replica that adds the same delta holds the same bits.

    Raises:
        KeyError: the delta names a tensor that is not there.
    """
    result = dict(tensors)
    for name, sparse in delta.items():
        moved = result[name].clone(memory_format=torch.contiguous_format)
        if sparse.positions is None:
            moved += sparse.dense()
        else:
            moved.view(-1)[sparse.positions] += sparse.values
        result[name] = moved
    return result


def add_base(base: BaseDelta, change: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The base's change plus one more, module by module; what is not touched is shared with the input, not copied."""
    result = dict(base)
    for module, tensor in change:
        result[module] = result[module] + tensor if module in result else tensor
    return result


def difference(after: Tensors, before: Tensors) -> Iterator[tuple[str, Tensor]]:
    """After - before, dense float32, one tensor at a time: no copy of all is made."""
    for name, tensor in after.items():
        yield name, tensor - before[name]


def dense_delta(after: Tensors, before: Tensors) -> dict[str, SparseTensor]:
    """After - before, every element of it."""
    return {name: SparseTensor.from_dense(delta) for name, delta in difference(after, before)}


def add_to(tensor: Tensor, sparse: SparseTensor, factor: float) -> Tensor:
    """Adds factor times a sparse change to a contiguous tensor, in place; gives it."""
    flat = tensor.view(-1)
    if sparse.positions is None:
        flat.add_(sparse.values, alpha=factor)
    else:
        flat.index_add_(0, sparse.positions, sparse.values, alpha=factor)
    return tensor


def add_weighted(total: Tensor, name: str, deltas: Sequence[Delta], weights: Sequence[float]) -> Tensor:
    """Adds sum_i weight_i delta_i of one tensor to the contiguous `total`, in place; what was not sent counts as
    zero.
    """
    for delta, weight in zip(deltas, weights, strict=True):
        sparse = delta.get(name)
        if sparse is not None and sparse.count:
            add_to(total, sparse, weight)
    return total


def average(names: Iterable[str], deltas: Sequence[Delta], weights: Sequence[float]) -> dict[str, SparseTensor]:
    """sum_i weight_i delta_i of every tensor that somebody sent, each on its own.

    Sparse where every delta is: with the elements that anybody sent; a tensor whole in one of them is whole. What all
    drew alike stays drawn, with the same elements, so that the mean need not list them either.

    Args:
        names: of the tensors, in the order of the result.
        deltas: at least one.
        weights: one a delta, with sum 1.
    """
    mean = {}
    for name in names:
        sent = [delta[name] for delta in deltas if name in delta]
        if not sent:
            continue
        total = add_weighted(torch.zeros(sent[0].shape), name, deltas, weights)
        if any(sparse.positions is None for sparse in sent):
            mean[name] = SparseTensor.from_dense(total)
            continue
        if _drawn_alike(sent):
            where = sent[0].positions
            mean[name] = SparseTensor(sent[0].shape, where, total.view(-1)[where], sent[0].draw)
            continue
        touched = torch.zeros(total.numel(), dtype=torch.bool)
        for sparse in sent:
            touched[sparse.positions] = True
        mean[name] = SparseTensor.from_mask(total, touched.view_as(total))
    return mean


def _drawn_alike(sent: Sequence[SparseTensor]) -> bool:
    """Whether all have the elements of one draw; a draw says nothing of a sender that left some out."""
    draw, where = sent[0].draw, sent[0].positions
    if draw is None or where is None:
        return False
    return all(
        other.draw == draw and other.positions is not None and torch.equal(other.positions, where) for other in sent[1:]
    )


def digest(tensors: Tensors, base: BaseDelta | None = None) -> str:
    """SHA-256 over names, shapes and float32 bits, in hex: equal exactly when two replicas are equal bit for bit."""
    hasher = hashlib.sha256()
    named = [*tensors.items(), *((f"{module}/base", tensor) for module, tensor in (base or {}).items())]
    for name, tensor in named:
        raw = name.encode()
        hasher.update(struct.pack(f"<{len(tensor.shape) + 2}Q", len(raw), len(tensor.shape), *tensor.shape) + raw)
        hasher.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return hasher.hexdigest()

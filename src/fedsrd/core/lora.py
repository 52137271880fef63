"""The LoRA view of named tensors: the pairs of factors that reconstruct and decompose work on.

A LoRA-adapted linear layer has weight W0 + scale * B A with A (rank, in_features) and B (out_features, rank)
(Hu et al., arXiv 2106.09685). The factors are called MODULE.lora_B.weight and MODULE.lora_A.weight, as PEFT calls them.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from fedsrd.core.tensors import Tensors, TensorSpec, TensorTable

Factor = Literal["B", "A"]
FACTORS: tuple[Factor, Factor] = ("B", "A")


class LoraPair(NamedTuple):
    """The two factors of one module: B (out_features, rank) and A (rank, in_features), float32."""

    B: Tensor
    A: Tensor


Pairs = Mapping[str, LoraPair]
"""Factors by module."""


class LoraModule(NamedTuple):
    """One adapted module: its name in the base model and its sizes."""

    name: str
    out_features: int
    in_features: int
    rank: int


def tensor_name(module: str, factor: Factor) -> str:
    """What a module's factor is called.

    >>> tensor_name("layers.0.q_proj", "B")
    'layers.0.q_proj.lora_B.weight'
    """
    return f"{module}.lora_{factor}.weight"


def split(name: str) -> tuple[str, Factor | None]:
    """Module and factor of a tensor's name; the name itself and None where it is no LoRA factor's.

    >>> split("layers.0.q_proj.lora_A.weight"), split("prompt")
    (('layers.0.q_proj', 'A'), ('prompt', None))
    """
    for factor in FACTORS:
        suffix = f".lora_{factor}.weight"
        if name.endswith(suffix):
            return name.removesuffix(suffix), factor
    return name, None


def table_of(modules: Iterable[LoraModule]) -> TensorTable:
    """The table of these modules' factors: module by module, B before A.

    >>> table_of([LoraModule("q", 6, 4, 2)]).shapes
    {'q.lora_B.weight': (6, 2), 'q.lora_A.weight': (2, 4)}
    """
    specs = []
    for module in modules:
        specs.append(TensorSpec(tensor_name(module.name, "B"), (module.out_features, module.rank), "lora_B"))
        specs.append(TensorSpec(tensor_name(module.name, "A"), (module.rank, module.in_features), "lora_A"))
    return TensorTable(tuple(specs))


def modules_of(table: TensorTable) -> tuple[LoraModule, ...]:
    """The inverse of `table_of`; tensors that are no LoRA factors are passed over.

    Raises:
        ValueError: a factor lacks its partner, or their ranks differ.
    """
    shapes = table.shapes
    found = []
    for spec in table.specs:
        module, factor = split(spec.name)
        if factor is None:
            continue
        other = shapes.get(tensor_name(module, "A" if factor == "B" else "B"))
        if (
            other is None
            or len(other) != 2
            or len(spec.shape) != 2
            or (other[0 if factor == "B" else 1]) != (spec.shape[1 if factor == "B" else 0])
        ):
            raise ValueError(f"{spec.name} {spec.shape}: its partner has shape {other}; expected factors of one rank")
        if factor == "B":
            found.append(LoraModule(module, spec.shape[0], other[1], other[0]))
    return tuple(found)


def pairs_of(tensors: Tensors) -> dict[str, LoraPair]:
    """The factors by module, in the order of their B; other tensors are passed over.

    Raises:
        KeyError: a factor lacks its partner.
    """
    found = {}
    for name, tensor in tensors.items():
        module, factor = split(name)
        if factor == "B":
            found[module] = LoraPair(tensor, tensors[tensor_name(module, "A")])
    return found


def tensors_of(pairs: Pairs) -> dict[str, Tensor]:
    """The inverse of `pairs_of`.

    >>> import torch
    >>> list(tensors_of({"q": LoraPair(torch.zeros(6, 2), torch.ones(2, 4))}))
    ['q.lora_B.weight', 'q.lora_A.weight']
    """
    return {tensor_name(module, factor): getattr(pair, factor) for module, pair in pairs.items() for factor in FACTORS}

"""The adapters that speed is measured at, and synthetic updates for them."""

from collections.abc import Sequence

import numpy as np
import torch

from fedsrd.core import lora
from fedsrd.core.lora import Factor, LoraModule, tensor_name
from fedsrd.core.tensors import Delta, Draw, GlobalState, SparseTensor, TensorTable
from fedsrd.methods import Contribution

UPLINK_DENSITY, DOWNLINK_DENSITY = 0.052, 0.2
"""The paper's: arXiv 2510.04601, section 5."""


def decoder(layers: int, hidden: int, key_value: int, intermediate: int, rank: int) -> TensorTable:
    """All linear layers of a Llama-like decoder."""
    linear = {
        "q_proj": (hidden, hidden),
        "k_proj": (key_value, hidden),
        "v_proj": (key_value, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    return lora.table_of(
        LoraModule(f"layers.{i}.{name}", out, inn, rank) for i in range(layers) for name, (out, inn) in linear.items()
    )


LLAMA_3B = decoder(28, 3072, 1024, 8192, 64)
QWEN_7B = decoder(28, 3584, 512, 18944, 32)
EMBEDDED = decoder(30, 576, 192, 1536, 16)
TABLES = {"Llama-3.2-3B, rank 64": LLAMA_3B, "Qwen2-7B, rank 32": QWEN_7B, "SmolLM2-135M, rank 16": EMBEDDED}


def part(table: TensorTable, modules: int) -> TensorTable:
    """The first modules of a table; seven are one layer."""
    return lora.table_of(lora.modules_of(table)[:modules])


def state(table: TensorTable, seed: int = 0) -> GlobalState:
    """A as it starts, uniform in +-1/sqrt(in_features); B as after some rounds, normal and 1e-3 wide."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for m in lora.modules_of(table):
        tensors[tensor_name(m.name, "B")] = torch.randn(m.out_features, m.rank, generator=generator) * 1e-3
        uniform = torch.rand(m.rank, m.in_features, generator=generator) * 2 - 1
        tensors[tensor_name(m.name, "A")] = uniform * m.in_features**-0.5
    return GlobalState(tensors)


def contributions(deltas: Sequence[Delta]) -> list[Contribution]:
    """One client's each, all of one weight."""
    return [Contribution(f"client-{place}", delta, 1 / len(deltas)) for place, delta in enumerate(deltas)]


def uplink(table: TensorTable, spread: float = 0.25, seed: int = 0) -> Delta:
    """A sparse uplink at the paper's density, normal values 3e-4 wide.

    What travels is chosen by magnitude times the norm of the element's rank component, as importance pruning does.
    These norms are log-normal with deviation `spread`: 0 gives every component one density, and so plain Bernoulli
    positions.
    """
    numbers, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    delta = {}
    for name, (rows, columns) in table.shapes.items():
        of_B = lora.split(name)[1] == "B"
        rank = columns if of_B else rows
        norms = torch.from_numpy(np.exp(numbers.normal(0, spread, rank)).astype(np.float32))
        matrix = torch.randn(rows, columns, generator=generator) * 3e-4
        scores = matrix.abs() * (norms if of_B else norms.unsqueeze(1))
        threshold = scores.reshape(-1).kthvalue(int(matrix.numel() * (1 - UPLINK_DENSITY))).values
        delta[name] = SparseTensor.from_mask(matrix, scores > threshold)
    return delta


def downlink(table: TensorTable, factor: Factor, seed: int = 0) -> Delta:
    """A downlink at the paper's density: one factor, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: SparseTensor.from_draw(torch.randn(shape, generator=generator) * 1e-3, name, Draw(seed, DOWNLINK_DENSITY))
        for name, shape in table.shapes.items()
        if lora.split(name)[1] == factor
    }


def dense(table: TensorTable, seed: int = 0) -> Delta:
    """What FedAvg sends: everything."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: SparseTensor.from_dense(torch.randn(shape, generator=generator) * 3e-4)
        for name, shape in table.shapes.items()
    }

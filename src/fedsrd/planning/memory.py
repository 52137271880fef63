"""Memory and disk of a client and of the server, as estimates: the allocator's waste is not counted."""

from dataclasses import dataclass

from fedsrd.federation import spool
from fedsrd.planning.architecture import Architecture

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int4": 0.56}
"""A base parameter's; 4-bit ones carry a scale for every block (QLoRA, arXiv 2305.14314)."""
OPTIMIZER = 16.0
"""An adapter parameter's in training: float32 value, gradient, and AdamW's two moments."""


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they hold."""

    base: float
    adapter: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.base + self.adapter + self.activations + self.logits


def client(
    model: Architecture, dtype: str, batch: int, length: int, *, checkpointing: bool, by_example: bool = False
) -> Memory:
    """Accelerator memory of local training.

    Activations are the inputs that backward needs of every linear layer, in the base's dtype and once more in float32
    for the adapter, and two norms a layer; with gradient checkpointing one layer's, and every layer's input.

    Args:
        model: sizes.
        dtype: of the base weights.
        batch: sequences at a time.
        length: tokens of each.
        checkpointing: whether activations are computed again in backward.
        by_example: whether every example of a batch has a gradient of its own (DP-SGD), float32.
    """
    tokens = batch * length
    half = max(BYTES[dtype], 2.0)
    wide = 4 * model.hidden + 2 * model.key_value + 4 * model.intermediate
    adapted = 6 * model.hidden + model.intermediate
    layer = tokens * (half * wide + 4.0 * adapted + 8.0 * model.hidden)
    activations = layer + model.layers * tokens * half * model.hidden if checkpointing else model.layers * layer
    return Memory(
        base=model.parameters * BYTES[dtype],
        adapter=(OPTIMIZER + (4.0 * batch if by_example else 0.0)) * model.table.elements,
        activations=activations,
        # Logits in the base's dtype and float32, and their gradients.
        logits=tokens * model.vocabulary * (2 * half + 8.0),
    )


def server(model: Architecture, clients: int, density: float) -> float:
    """Host memory of the server: old and new factors, decoded updates up to the spool, one payload each way."""
    factors = 8.0 * model.table.elements
    decoded = clients * 12.0 * density * model.table.elements
    return factors + min(decoded, spool.MEMORY) + 8.0 * model.table.elements


def disk(model: Architecture) -> dict[str, float]:
    """Disk of a client (the base weights in bfloat16) and of a run's folder (adapter and state)."""
    return {"client": 2.0 * model.parameters, "run folder": 8.0 * model.table.elements}

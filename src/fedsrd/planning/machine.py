"""What this machine has: memory, and how fast it multiplies."""

import os
import time
from pathlib import Path

import torch

_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's bound stands (version 2, version 1)."""
_TRIAL = 0.2
"""Seconds of the trial."""
SHARE = 0.4
"""Of the speed of one large product that training of a decoder comes to: attention, norms, the optimizer and memory
take the rest."""


def memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU's memory, or of this machine's, or container's, main memory; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for file in _CGROUP:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isascii() and text.isdecimal() and int(text) > 0:
            found.append(int(text))
    return min(found)


def flops(device: torch.device, dtype: torch.dtype, rows: int = 256, hidden: int = 1024) -> float:
    """Floating-point operations a second in products as training makes them, tried for a fifth of a second.

    Args:
        device: where.
        dtype: of the weights.
        rows: tokens at a time.
        hidden: width of the model.
    """
    x = torch.ones(min(rows, 4096), min(hidden, 4096), dtype=dtype, device=device)
    w = torch.ones(x.shape[1], x.shape[1], dtype=dtype, device=device)

    def product() -> None:
        torch.mm(x, w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    product()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < _TRIAL:
        product()
        times += 1
    return 2.0 * x.shape[0] * x.shape[1] ** 2 * times / (time.perf_counter() - began)


def training_seconds(parameters: int, tokens: float, speed: float, *, checkpointing: bool) -> float:
    """Of so many tokens through a frozen base with an adapter: 2 operations a parameter forward, 2 back to the
    activations, 2 more where the forward pass is repeated. Rough: half or twice as much is no surprise.
    """
    return (6.0 if checkpointing else 4.0) * parameters * tokens / (SHARE * speed)

"""The whole plan as plain data: what `fedsrd plan --json` prints."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedsrd import methods
from fedsrd.core import lora
from fedsrd.methods import capabilities
from fedsrd.planning import memory, payloads
from fedsrd.planning.architecture import Architecture
from fedsrd.wire import WireOptions
from fedsrd.wire.options import ValueType

VALUES: tuple[ValueType, ...] = ("float32", "bfloat16", "int8", "int4")
WIRES: dict[str, WireOptions] = {
    "paper's format": payloads.PAPER,
    **{values: WireOptions(values=values) for values in VALUES},
}
FED_BACK: dict[str, WireOptions] = {"ternary": WireOptions(values="ternary", threshold=1.6, block=1024)}
"""Number types besides, for methods with feedback: what so few bits lose, these send later."""
PAPERS_DENSITY = 0.052
"""Of FedSRD's uplink: arXiv 2510.04601, its experiments."""


@dataclass(frozen=True)
class Setting:
    """What a federation is planned for.

    Attributes:
        clients: that take part in a round.
        rounds: of the run.
        up: a client's uplink, bits a second.
        down: its downlink, bits a second.
        dtype: of the base weights: float32, bfloat16, float16 or int4.
        batch: sequences at a time.
        length: tokens of each.
        checkpointing: whether activations are computed again in backward.
        density: share of elements that an adaptive ratio keeps.
    """

    clients: int = 4
    rounds: int = 50
    up: float = 10e6
    down: float = 50e6
    dtype: str = "bfloat16"
    batch: int = 8
    length: int = 512
    checkpointing: bool = False
    density: float = PAPERS_DENSITY


def federated() -> list[str]:
    """The methods that send anything, sorted."""
    return capabilities.fitting(capabilities.PLANNER)


def forecast(model: Architecture, setting: Setting, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Bytes, time and memory of a federation.

    Args:
        model: its base model.
        setting: everything else.
        names: methods; None for all that send anything.

    Raises:
        RecipeError: a method is unknown or sends nothing.
    """
    rows = []
    for name in names if names is not None else federated():
        kind = methods.get(name)
        method = kind(kind.Options())
        capabilities.check(method, capabilities.PLANNER, f"--method {name}")
        feeds_back = getattr(method.options, "feedback", "none") != "none"
        wires = {**WIRES, **FED_BACK} if feeds_back else WIRES
        found = payloads.costs(name, model.table, setting.clients, list(wires.values()), setting.density)
        rows += [_row(name, label, cost, setting) for label, cost in zip(wires, found, strict=True)]
    return {**frame(model, setting), "methods": rows}


def frame(model: Architecture, setting: Setting) -> dict[str, Any]:
    """What does not depend on the method: sizes, memory and disk."""
    used = memory.client(model, setting.dtype, setting.batch, setting.length, checkpointing=setting.checkpointing)
    return {
        "model": model.model,
        "parameters": model.parameters,
        "adapted_modules": len(lora.modules_of(model.table)),
        "adapter_parameters": model.table.elements,
        "dense_float32_bytes": 4 * model.table.elements,
        "setting": asdict(setting),
        "client_memory": {**asdict(used), "total": used.total},
        "server_memory": memory.server(model, setting.clients, setting.density),
        "disk": memory.disk(model),
    }


def _row(name: str, label: str, found: payloads.Cost, setting: Setting) -> dict[str, Any]:
    both = found.up + found.down
    return {
        "method": name,
        "values": label,
        "up_bytes": round(found.up),
        "down_bytes": round(found.down),
        "total_bytes": round(both * setting.clients * setting.rounds),
        "link_seconds_a_round": 8 * found.up / setting.up + 8 * found.down / setting.down,
    }

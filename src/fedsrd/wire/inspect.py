"""What a payload holds, for people: header, and with the shape table also counts and densities."""

import math
from typing import Any

from fedsrd.core.factors import ShapeTable
from fedsrd.wire import positions as position_codings
from fedsrd.wire import values as value_codings
from fedsrd.wire.payload import FORMAT_VERSION, Kind, decode_delta, decode_start, read_header


def inspect_payload(payload: bytes, table: ShapeTable | None = None) -> dict[str, Any]:
    """Header fields of a payload; with its shape table also what it carries, in all and of each tensor.

    Args:
        payload: the bytes.
        table: the shapes of the adapter that it belongs to, if known.

    Raises:
        PayloadError: it is damaged, or not for this table.
    """
    header = read_header(payload)
    found: dict[str, Any] = {
        "kind": header.kind.name.lower(),
        "format_version": FORMAT_VERSION,
        "bytes": len(payload),
        "checksum": "ok",
        "shape_table": header.table_digest.hex(),
    }
    if header.kind is Kind.START:
        return found if table is None else {**found, "seed": decode_start(payload, table)}
    found |= {
        "round": header.round,
        "applies_to_version": header.version,
        "positions": _name(position_codings.CODINGS, header.positions),
        "values": _name(value_codings.CODINGS, header.values),
    }
    if table is None:
        return found
    _, delta = decode_delta(payload, table)
    count = sum(sparse.count for sparse in delta.values())
    elements = sum(sparse.elements for sparse in delta.values())
    density = count / elements if elements else 0.0
    return found | {
        "tensors": f"{len(delta)} of {len(table.shapes)}",
        "elements": count,
        "density": density,
        "bits_per_element": 8 * len(payload) / elements if elements else 0.0,
        "position_entropy_bits": _entropy(density),
        "slots": {f"{slot.module}.{slot.factor}": sparse.count / sparse.elements for slot, sparse in delta.items()},
    }


def _name(codings: dict[int, Any], number: int) -> str:
    return str(codings[number].name) if number in codings else f"unknown ({number})"


def _entropy(density: float) -> float:
    """Bits an element that positions cost at least when each travels with this probability, on its own."""
    if not 0.0 < density < 1.0:
        return 0.0
    return -(density * math.log2(density) + (1 - density) * math.log2(1 - density))

"""What a payload holds, for people: header; with the tensor table what travels, how, and how near to the entropy."""

from collections.abc import Sequence
from typing import Any

from fedsrd.core.tensors import TensorTable
from fedsrd.wire.envelope import FORMAT_VERSION, OUTSIDE, Kind, decode_start, read_header
from fedsrd.wire.payload import Travels, decode
from fedsrd.wire.positions import CODECS, bernoulli_bits
from fedsrd.wire.values import TYPES


def inspect_payload(payload: bytes, table: TensorTable | None = None) -> dict[str, Any]:
    """Header fields of a payload; with its tensor table also what it carries, in all and of each tensor.

    Args:
        payload: the bytes.
        table: the tensors of the adapter that it belongs to, if known.

    Returns:
        JSON-ready fields. Of sections: `bytes`, and `entropy_bytes`, what their model could not go below (the classes'
        coin tosses for positions, each symbol on its own for values). `bits_per_element` counts every element of the
        tensors that travel, `bits_per_value` what travels. `bernoulli_bytes` is the entropy of the listed positions if
        all elements were equally likely.

    Raises:
        PayloadError: it is damaged, or not for this table.
    """
    header = read_header(payload)
    found: dict[str, Any] = {
        "kind": header.kind.name.lower(),
        "format_version": FORMAT_VERSION,
        "bytes": len(payload),
        "checksum": "ok",
        "tensor_table": header.table_digest.hex(),
    }
    if header.kind is Kind.START:
        return found if table is None else {**found, "seed": decode_start(payload, table)}
    if header.kind is Kind.SUM:
        return found | {
            "round": header.round,
            "applies_to_version": header.version,
            "bits_of_an_integer": header.block,
            "integers_at_most": (len(payload) - OUTSIDE) // 8 * (64 // max(header.block, 1)),
            "masked": "cannot be told",
        }
    found |= {
        "round": header.round,
        "applies_to_version": header.version,
        "positions": _name(CODECS, header.positions),
        "values": _name(TYPES, header.values),
        "block": header.block,
    }
    if table is None:
        return found
    decoded = decode(payload, table, tracing=True)
    delta, travels = decoded.delta, decoded.travels
    ways = [how.name.lower() for how in travels.values() if how is not Travels.NOT]
    count = sum(sparse.count for sparse in delta.values())
    elements = sum(sparse.elements for sparse in delta.values())
    listed = [sparse for name, sparse in delta.items() if travels[name] is Travels.LISTED]
    return found | {
        "tensors_that_travel": f"{len(ways)} of {len(travels)}",
        "travelling": {way: ways.count(way) for way in sorted(set(ways))},
        "values_that_travel": count,
        "density": count / elements if elements else 0.0,
        "bits_per_element": 8 * len(payload) / elements if elements else 0.0,
        "bits_per_value": 8 * len(payload) / count if count else 0.0,
        "bernoulli_bytes": bernoulli_bits(sum(s.count for s in listed), sum(s.elements for s in listed)) / 8,
        "sections": _sections(decoded.sections, elements),
        "tensors": {
            name: {"travels": travels[name].name.lower(), "density": sparse.count / sparse.elements}
            for name, sparse in delta.items()
        },
    }


def _sections(trace: Sequence[tuple[str, int, float]], elements: int) -> dict[str, dict[str, float]]:
    """Bytes and entropy of each section, summed over its pieces."""
    summed: dict[str, tuple[int, float]] = {}
    for name, size, bits in trace:
        before = summed.get(name, (0, 0.0))
        summed[name] = (before[0] + size, before[1] + bits)
    return {
        name: {"bytes": size, "entropy_bytes": round(bits / 8, 1), "bits_per_element": 8 * size / elements}
        for name, (size, bits) in summed.items()
    }


def _name(codings: Any, number: int) -> str:
    if number == 0:
        return "none"
    return str(codings[number].name) if number in codings else f"unknown ({number})"

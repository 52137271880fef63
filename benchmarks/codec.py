"""How long do payloads take, beside what peers send: every element, as safetensors?"""

from typing import Any

import safetensors.torch
from harness import Result, alternate
from shapes import LLAMA_3B, dense, downlink, part, uplink

from fedsrd.core.tensors import Delta
from fedsrd.wire import Kind, WireOptions, decode_delta, encode_delta

MIB = 1 << 20


def run(quick: bool) -> Result:
    """Encode and decode seconds and MiB of uplinks, downlinks and dense deltas."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    result = Result(
        "Payloads, Llama-3.2-3B at rank 64" + (", one layer" if quick else ""),
        ["what", "numbers", "MiB", "encode s", "decode s"],
        notes=["Peers send every element, zeros too: the last line, safetensors of the same uplink made dense."],
    )
    up, down, whole = uplink(table), downlink(table, "B"), dense(table)
    cases: list[tuple[str, Delta, str]] = [("uplink", up, v) for v in ("float32", "bfloat16", "int8", "int4")]
    cases += [("downlink, B", down, v) for v in ("float32", "int4")]
    cases += [("FedAvg", whole, "float32")]
    for what, delta, values in cases:
        options = WireOptions(values=values)
        made: list[bytes] = [b""]

        def encode(delta: Delta = delta, options: WireOptions = options, made: list[bytes] = made) -> None:
            made[0] = encode_delta(delta, table, Kind.UPLINK, 1, 0, options, 1)

        def decode(made: list[bytes] = made) -> Any:
            return decode_delta(made[0], table)

        found = alternate({"encode": encode, "decode": decode}, 2 if quick or what == "FedAvg" else 3)
        result.rows.append([what, values, len(made[0]) / MIB, found["encode"], found["decode"]])
    blob: list[bytes] = [b""]

    def save() -> None:
        blob[0] = safetensors.torch.save({name: sparse.dense() for name, sparse in up.items()})

    found = alternate({"encode": save, "decode": lambda: safetensors.torch.load(blob[0])}, 2)
    result.rows.append(["safetensors, dense", "float32", len(blob[0]) / MIB, found["encode"], found["decode"]])
    return result

"""Bytes, bits against the entropy, seconds and memory of the wire format.

    python benchmarks/wire.py sizes   [--json FILE]      # Llama-3.2-3B, rank 64: lengths of real payloads
    python benchmarks/wire.py speed   [--json FILE]      # encode and decode seconds, peak memory, at the same shapes
    python benchmarks/wire.py real RUN [--json FILE]     # uplinks of `fedsrd run --keep-payloads --out RUN`, recoded

Deltas at 3B shapes are synthetic (shapes.py); "spread" is how far the rank components' densities lie apart, 0 not at
all.
"""

import argparse
import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import LLAMA_3B, dense, downlink, uplink

from fedsrd.core.tensors import Delta
from fedsrd.federation.resume import tensor_table
from fedsrd.runs.folder import RunFolder
from fedsrd.wire import Kind, WireOptions, decode_delta, encode_delta
from fedsrd.wire.inspect import inspect_payload
from fedsrd.wire.positions import bernoulli_bits

MIB = 1 << 20
TYPES = ("float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary")
REPEATS = 5


def mib(delta: Delta, **options: Any) -> float:
    """Length of the payload in MiB."""
    return len(encode_delta(delta, LLAMA_3B, Kind.UPLINK, 1, 0, WireOptions(**options), 1)) / MIB


def sizes() -> dict[str, Any]:
    """Lengths of payloads in MiB by number type."""
    found: dict[str, Any] = {"parameters": LLAMA_3B.elements}
    for spread in (0.0, 0.25, 0.5):
        delta = uplink(LLAMA_3B, spread)
        found[f"uplink, spread {spread}"] = {values: round(mib(delta, values=values), 2) for values in TYPES}
        if spread == 0.0:
            found["uplink, bitmap and float32 (the paper's format)"] = round(mib(delta, positions="bitmap"), 2)
    rounds = {factor: downlink(LLAMA_3B, factor) for factor in ("B", "A")}  # type: ignore[arg-type]
    for factor, delta in rounds.items():
        found[f"downlink, {factor}"] = {values: round(mib(delta, values=values), 2) for values in TYPES}
        paper = round(mib(delta, positions="bitmap"), 2)
        found[f"downlink, {factor}, bitmap and float32 (the paper's format)"] = paper
    whole = dense(LLAMA_3B)
    found["FedAvg, one way"] = {values: round(mib(whole, values=values), 2) for values in ("float32", "bfloat16")}
    return found


def speed() -> dict[str, Any]:
    """Seconds (least of some runs) and peak memory of encoding and decoding the uplink at 3B shapes."""
    delta = uplink(LLAMA_3B, 0.25)
    count = sum(sparse.count for sparse in delta.values())
    found: dict[str, Any] = {"values that travel": count, "their positions and values, MiB": round(12 * count / MIB, 1)}
    for values in TYPES:
        options = WireOptions(values=values)
        encode, decode = [], []
        for _ in range(REPEATS):
            began = time.perf_counter()
            payload = encode_delta(delta, LLAMA_3B, Kind.UPLINK, 1, 0, options, 1)
            middle = time.perf_counter()
            decode_delta(payload, LLAMA_3B)
            encode.append(middle - began)
            decode.append(time.perf_counter() - middle)
        tracemalloc.start()
        payload = encode_delta(delta, LLAMA_3B, Kind.UPLINK, 1, 0, options, 1)
        peak_encode = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        decode_delta(payload, LLAMA_3B)
        peak_decode = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        found[values] = {
            "encode s": round(min(encode), 3),
            "decode s": round(min(decode), 3),
            "encode peak, of positions and values": round(peak_encode / (12 * count), 2),
            "decode peak, of positions and values": round(peak_decode / (12 * count), 2),
        }
    info = inspect_payload(encode_delta(delta, LLAMA_3B, Kind.UPLINK, 1, 0), LLAMA_3B)
    found["positions against the entropy of their classes"] = round(position_ratio(info), 4)
    return found


def position_ratio(info: dict[str, Any]) -> float:
    """Bytes of positions, classes and all, over the entropy of the classes' coin tosses."""
    return float(position_bytes(info) / info["sections"]["positions"]["entropy_bytes"])


def position_bytes(info: dict[str, Any]) -> int:
    """Bytes of all sections of positions."""
    return sum(section["bytes"] for name, section in info["sections"].items() if name.startswith("position"))


def real(run: Path) -> dict[str, Any]:
    """Uplinks of a run, decoded and coded anew: positions against plain Bernoulli entropy, bytes by number type."""
    table = tensor_table(RunFolder(run))
    if table is None:
        raise SystemExit(f"{run}: no round of this run is complete yet")
    rows = []
    for file in sorted((run / "payloads").glob("*/*.up")):
        header, delta = decode_delta(file.read_bytes(), table)
        made = {
            values: encode_delta(delta, table, Kind.UPLINK, header.round, header.version, WireOptions(values=values), 1)
            for values in TYPES
        }
        info = inspect_payload(made["float32"], table)
        positions = position_bytes(info)
        paper = WireOptions(positions="bitmap")
        elements, count = sum(s.elements for s in delta.values()), sum(s.count for s in delta.values())
        rows.append(
            {
                "payload": f"{file.parent.name}/{file.stem}",
                "density": round(count / elements, 4),
                "positions, of plain Bernoulli entropy": round(8 * positions / bernoulli_bits(count, elements), 4),
                "positions, of their classes' entropy": round(position_ratio(info), 4),
                "bytes": {values: len(payload) for values, payload in made.items()},
                "bytes, bitmap and float32": len(
                    encode_delta(delta, table, Kind.UPLINK, header.round, header.version, paper)
                ),
            }
        )
    return {"uplinks": rows}


def main() -> None:
    """Measures, prints, and stores with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sizes", "speed", "real"))
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "real" and given.run is None:
        parser.error("real: name the folder of a run with payloads")
    torch.set_num_threads(2)
    found = {"sizes": sizes, "speed": speed, "real": lambda: real(given.run)}[given.what]()
    stored = {"command": f"python benchmarks/wire.py {given.what}", "numpy": np.__version__, **found}
    text = json.dumps(stored, indent=1)
    sys.stdout.write(text + "\n")
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""How long does the server's step take, beside FedAvg's averaging and beside the plain reading of the paper?"""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plain
import torch
from harness import Result, alternate, once
from shapes import LLAMA_3B, TABLES, contributions, dense, part, state, uplink

from fedsrd.core import decompose, lora
from fedsrd.core.lora import LoraPair
from fedsrd.core.reconstruct import Mean
from fedsrd.core.tensors import Delta, TensorTable
from fedsrd.methods import ServerContext, get

CLIENTS = 4
WEIGHTS = [1 / CLIENTS] * CLIENTS


def run(quick: bool) -> Result:
    """FedAvg, FedSRD-e and FedSRD, odd and even rounds, four clients, for whole adapters."""
    result = Result(
        "Server step, 4 clients: seconds (median), and times FedAvg's dense averaging",
        ["adapter", "FedAvg", "FedAvg, fresh memory", "method", "round", "seconds", "x FedAvg", "x fresh"],
        notes=[
            "FedAvg's result is as large as the adapter. Fresh memory: the last two results are still held when the "
            "next is made, as a server holds a broadcast; the kernel then may have to hand out new pages."
        ],
    )
    for name, table in TABLES.items():
        if quick:
            table = part(table, 7)
            name += ", one layer"
        _compare(name, table, 3 if quick else 5, result)
        gc.collect()
    return result


def _compare(name: str, table: TensorTable, repeats: int, result: Result) -> None:
    start = state(table)
    whole = [dense(table, seed) for seed in range(CLIENTS)]
    sent = [uplink(table, seed=seed) for seed in range(CLIENTS)]
    held: list[Any] = []

    def step(method: str, round_number: int, updates: list[Delta]) -> Callable[[], Any]:
        made = get(method)(get(method).Options())
        before, context = replace(start, version=round_number - 1), ServerContext(round_number, 0, CLIENTS)
        return lambda: made.server_update(before, contributions(updates), context)

    average = step("fedavg", 1, whole)

    def fresh() -> None:
        held.append(average())
        if len(held) > 2:
            held.pop(0)

    calls: dict[str, Callable[[], Any]] = {"reused": average, "fresh": fresh}
    for method in ("fedsrd-e", "fedsrd"):
        calls[f"{method} odd"], calls[f"{method} even"] = step(method, 1, sent), step(method, 2, sent)
    found = alternate(calls, repeats)
    reused, new = found.pop("reused"), found.pop("fresh")
    for what, seconds in found.items():
        method, odd = what.split()
        result.rows.append([name, reused, new, method, odd, seconds, seconds / reused, seconds / new])


def run_plain(quick: bool) -> Result:
    """Layer by layer: the plain dense reading in float32, ours, and how far ours is from dense float64."""
    result = Result(
        "FedSRD's server step, one layer of Llama-3.2-3B at a time: the plain dense reading against ours",
        ["layer", "out x in", "plain s", "ours s", "x faster", "distance from dense float64"],
        notes=["Both with the rank-64 projection, an odd round. Distance: Frobenius norm, of the step's own."],
    )
    table = part(LLAMA_3B, 7)
    pairs, sent = lora.pairs_of(state(table).tensors), [uplink(table, seed=seed) for seed in range(CLIENTS)]
    names = ("k_proj",) if quick else ("k_proj", "q_proj", "gate_proj", "down_proj")
    total_plain = total_ours = 0.0
    times = {"k_proj": 2, "q_proj": 2, "gate_proj": 2, "down_proj": 1}
    for name in names:
        module = f"layers.0.{name}"
        pair = pairs[module]

        def ours(module: str = module, pair: LoraPair = pair) -> torch.Tensor:
            return decompose.alternate(Mean(module, pair, sent, WEIGHTS), "B", 64)

        mine = alternate({"a": ours}, 5)["a"]
        slow = once(lambda module=module, pair=pair: plain.server_step(module, pair, sent, WEIGHTS, True, 64))
        distance: float | str = ""
        if name in ("k_proj", "q_proj"):
            exact = plain.server_step(module, LoraPair(*(t.double() for t in pair)), _wide(sent), WEIGHTS, True, 64)
            distance = float((ours().double() - exact).norm() / exact.norm())
        result.rows.append([name, f"{pair.B.shape[0]} x {pair.A.shape[1]}", slow, mine, slow / mine, distance])
        total_plain += times[name] * slow
        total_ours += times[name] * mine
    if not quick:
        result.rows.append(
            ["28 layers, extrapolated", "", 28 * total_plain, 28 * total_ours, total_plain / total_ours, ""]
        )
    return result


def _wide(deltas: list[Delta]) -> list[Delta]:
    return [
        {name: type(sparse)(sparse.shape, sparse.positions, sparse.values.double()) for name, sparse in delta.items()}
        for delta in deltas
    ]

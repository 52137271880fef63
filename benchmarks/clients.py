"""Does the server's cost grow with what it received, and its memory not with the number of clients?"""

import gc
from dataclasses import replace
from functools import partial

from harness import Result, once, peak_mib
from shapes import LLAMA_3B, contributions, part, state, uplink

from fedsrd.core import lora
from fedsrd.federation.spool import Spool
from fedsrd.methods import ServerContext, get

MIB = 1 << 20


def run(quick: bool) -> Result:
    """Two layers, 4 to 256 clients, every update spooled to disk before the step."""
    table = part(LLAMA_3B, 7 if quick else 14)
    modules = len(lora.modules_of(table))
    counts = (4, 16) if quick else (4, 16, 64, 256)
    result = Result(
        f"The server with many clients: {modules} modules of Llama-3.2-3B, rank 64, updates on disk",
        ["method", "round", "clients", "non-zeros, millions", "seconds", "microseconds / 1000 non-zeros", "peak MiB"],
        notes=[
            "Peak: resident memory above what stood before the step, clients' updates lying in the spool's file.",
            f"The largest module has {8192 * 64 * 4 / MIB:.0f} MiB for B, and so for one dense copy of its step.",
        ],
    )
    start = state(table)
    # Sixteen different updates, each many times: what they are makes no difference to the cost.
    different = [uplink(table, seed=seed) for seed in range(16)]
    nonzeros = [sum(sparse.count for sparse in delta.values()) for delta in different]
    for name in ("fedsrd-e", "fedsrd"):
        method = get(name)(get(name).Options())
        for number in (1, 2):
            for count in counts:
                with Spool(memory=0) as spool:
                    sent = contributions([spool.keep(different[i % 16]) for i in range(count)])
                    context = ServerContext(number, 0, count)
                    gc.collect()
                    update = partial(method.server_update, replace(start, version=number - 1), sent, context)
                    # Time and memory apart: watching resident memory costs nothing, but the first call warms up.
                    peak = peak_mib(update)
                    seconds = once(update)
                total = sum(nonzeros[i % 16] for i in range(count))
                row = [name, "odd" if number % 2 else "even", count, total / 1e6, seconds, 1e9 * seconds / total, peak]
                result.rows.append(row)
    return result

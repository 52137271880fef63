"""How long does a client take to sparsify and to apply, beside the plain reading and beside dense work?"""

from typing import Any

import plain
import torch
from harness import Result, alternate
from shapes import LLAMA_3B, dense, downlink, factors, part

from fedsrd.core.factors import LoraPair, ShapeTable, add, digest, slots
from fedsrd.methods import ClientStep, get


def _trained(table: ShapeTable) -> tuple[dict[str, LoraPair], dict[str, LoraPair]]:
    before = factors(table)
    generator = torch.Generator().manual_seed(1)
    after = {
        name: LoraPair(*(t + torch.randn(t.shape, generator=generator) * 3e-4 for t in pair))
        for name, pair in before.items()
    }
    return before, after


def run(quick: bool) -> Result:
    """Importance, kurtosis, selection and rescale over the whole adapter."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    before, after = _trained(table)
    method = get("fedsrd")(get("fedsrd").Options())

    def plainly() -> list[Any]:
        made = []
        for slot, tensor in slots(after):
            delta = tensor - getattr(before[slot.module], slot.factor)
            if slot.factor == "B":
                norms = before[slot.module].A.norm(dim=1)
            else:
                norms = after[slot.module].B.norm(dim=0).unsqueeze(1)
            made.append(plain.sparsify(delta, norms))
        return made

    found = alternate(
        {"ours": lambda: method.client_update(before, after, ClientStep(1, "c", 0)), "plain": plainly},
        2 if quick else 3,
    )
    share = found["ours"] / found["plain"]
    return Result(
        "A client's sparsification, Llama-3.2-3B at rank 64" + (", one layer" if quick else ""),
        ["elements", "ours s", "plain s (sort, dense)", "ours / plain"],
        [[table.elements, found["ours"], found["plain"], share]],
    )


def run_apply(quick: bool) -> Result:
    """Applying a broadcast to a replica: FedSRD's sparse factor, FedAvg's dense delta; and the digest of all of it."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    state, whole, sparse = factors(table), dense(table), downlink(table, "B")
    found = alternate(
        {"FedSRD": lambda: add(state, sparse), "FedAvg": lambda: add(state, whole), "digest": lambda: digest(state)}, 3
    )
    return Result(
        "Applying a broadcast, Llama-3.2-3B at rank 64" + (", one layer" if quick else ""),
        ["FedSRD s", "FedAvg s", "FedSRD / FedAvg", "SHA-256 of the state s"],
        [[found["FedSRD"], found["FedAvg"], found["FedSRD"] / found["FedAvg"], found["digest"]]],
    )

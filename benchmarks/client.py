"""How long does a client take to sparsify and to apply, beside the plain reading and beside dense work?"""

from typing import Any

import plain
import torch
from harness import Result, alternate
from shapes import LLAMA_3B, dense, downlink, part, state

from fedsrd.core import lora
from fedsrd.core.tensors import GlobalState, Tensors, TensorTable, add, difference, digest
from fedsrd.methods import ClientContext, get


def _trained(table: TensorTable) -> tuple[GlobalState, Tensors]:
    before = state(table)
    generator = torch.Generator().manual_seed(1)
    after = {name: t + torch.randn(t.shape, generator=generator) * 3e-4 for name, t in before.tensors.items()}
    return before, after


def run(quick: bool) -> Result:
    """Importance, kurtosis, selection and rescale over the whole adapter."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    before, after = _trained(table)
    method = get("fedsrd")(get("fedsrd").Options())
    context = ClientContext(1, 0, "c")
    local = method.local_plan(before, context)

    def plainly() -> list[Any]:
        made = []
        for name, delta in difference(after, before.tensors):
            module, factor = lora.split(name)
            if factor == "B":
                norms = before.tensors[lora.tensor_name(module, "A")].norm(dim=1)
            else:
                norms = after[lora.tensor_name(module, "B")].norm(dim=0).unsqueeze(1)
            made.append(plain.sparsify(delta, norms))
        return made

    found = alternate(
        {"ours": lambda: method.client_update(local, after, context), "plain": plainly},
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
    tensors, whole, sparse = state(table).tensors, dense(table), downlink(table, "B")
    found = alternate(
        {
            "FedSRD": lambda: add(tensors, sparse),
            "FedAvg": lambda: add(tensors, whole),
            "digest": lambda: digest(tensors),
        },
        3,
    )
    return Result(
        "Applying a broadcast, Llama-3.2-3B at rank 64" + (", one layer" if quick else ""),
        ["FedSRD s", "FedAvg s", "FedSRD / FedAvg", "SHA-256 of the state s"],
        [[found["FedSRD"], found["FedAvg"], found["FedSRD"] / found["FedAvg"], found["digest"]]],
    )

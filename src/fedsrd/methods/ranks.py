"""Clients whose rank is lower than the adapter's, for the methods that take them.

Such a client trains a truncated copy of the factors: its first columns of B and rows of A. The rest is zero, and stays
zero in training: where B's column and A's row are both zero, so are their gradients. The scale alpha / rank of the
model is the adapter's for everybody.
"""

from abc import ABC
from dataclasses import replace
from typing import ClassVar

import torch

from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import LoraPair
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, dense_delta, difference
from fedsrd.methods.method import ClientContext, Method, MethodState


class AnyRank(Method, ABC):
    """The client's side of a method that sends everything and takes clients of lower ranks."""

    any_rank: ClassVar[bool] = True
    needs_lora: ClassVar[bool] = True

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """As many components as the client's rank: the first."""
        plan = super().local_plan(state, context)
        return replace(plan, start=truncated(state.tensors, context.rank))

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """Both changes, dense up to the client's rank."""
        return whole_update(plan.start, after, context.rank), {}


def truncated(tensors: Tensors, rank: int | None) -> Tensors:
    """The factors with all but their first `rank` components zero; as they are where `rank` is None."""
    if rank is None:
        return tensors
    return lora.tensors_of({name: truncated_pair(pair, rank) for name, pair in lora.pairs_of(tensors).items()})


def truncated_pair(pair: LoraPair, rank: int | None) -> LoraPair:
    """One module's factors with all but their first `rank` components zero."""
    if rank is None or rank >= pair.A.shape[0]:
        return pair
    B, A = torch.zeros_like(pair.B), torch.zeros_like(pair.A)
    B[:, :rank] = pair.B[:, :rank]
    A[:rank] = pair.A[:rank]
    return LoraPair(B, A)


def whole_update(before: Tensors, after: Tensors, rank: int | None) -> Delta:
    """Every element of dB and dA that a client of this rank trains."""
    if rank is None:
        return dense_delta(after, before)
    delta = {}
    for name, tensor in difference(after, before):
        mask = torch.zeros_like(tensor, dtype=torch.bool)
        if lora.split(name)[1] == "B":
            mask[:, :rank] = True
        else:
            mask[:rank] = True
        delta[name] = SparseTensor.from_mask(tensor, mask)
    return delta

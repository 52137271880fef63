"""Clients whose rank is lower than the adapter's, for the methods that take them.

Such a client trains a truncated copy of the factors: its first columns of B and rows of A. The rest is zero, and stays
zero in training: where B's column and A's row are both zero, so are their gradients. The scale alpha / rank of the
model is the adapter's for everybody.
"""

from abc import ABC
from typing import ClassVar

import torch

from fedsrd.core.factors import Delta, Factors, LoraPair, SparseTensor, dense_delta, difference
from fedsrd.methods.method import ClientStep, Method


class AnyRank(Method, ABC):
    """The client's side of a method that sends everything and takes clients of lower ranks."""

    any_rank: ClassVar[bool] = True

    def local_start(self, state: Factors, step: ClientStep) -> Factors:
        """As many components as the client's rank: the first."""
        return truncated(state, step.rank)

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """Both changes, dense up to the client's rank."""
        return whole_update(before, after, step.rank)


def truncated(factors: Factors, rank: int | None) -> Factors:
    """The factors with all but their first `rank` components zero; as they are where `rank` is None."""
    if rank is None:
        return factors
    return {name: truncated_pair(pair, rank) for name, pair in factors.items()}


def truncated_pair(pair: LoraPair, rank: int | None) -> LoraPair:
    """One module's factors with all but their first `rank` components zero."""
    if rank is None or rank >= pair.A.shape[0]:
        return pair
    B, A = torch.zeros_like(pair.B), torch.zeros_like(pair.A)
    B[:, :rank] = pair.B[:, :rank]
    A[:rank] = pair.A[:rank]
    return LoraPair(B, A)


def whole_update(before: Factors, after: Factors, rank: int | None) -> Delta:
    """Every element of dB and dA that a client of this rank trains."""
    if rank is None:
        return dense_delta(after, before)
    delta = {}
    for slot, tensor in difference(after, before):
        mask = torch.zeros_like(tensor, dtype=torch.bool)
        if slot.factor == "B":
            mask[:, :rank] = True
        else:
            mask[:rank] = True
        delta[slot] = SparseTensor.from_mask(tensor, mask)
    return delta

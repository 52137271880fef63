"""FedSRD and FedSRD-e: sparsify, reconstruct, decompose.

Yan, Xie, Shen, Fang, Wu, "FedSRD: Sparsify-Reconstruct-Decompose for Communication-Efficient Federated Large Language
Models Fine-Tuning", WWW 2026 (arXiv 2510.04601). One round, t = 1, 2, ...:

1. Client: dB, dA by local training; keep the elements of highest importance, each matrix at its own ratio; rescale.
2. Server: W = sum p_i (B + dB_i)(A + dA_i), factored. FedSRD projects W to rank r; FedSRD-e does not.
3. Server: odd t gives dB = (W - B A) A^+, even t gives dA = B^+ (W - B A); sparsified at random, broadcast.
4. Both: add the same sparse delta.

Where the paper is silent: rounds count from 1, so B moves first; server and clients add the same sparse delta, so they
never drift; the L1 rescale of the authors' program is the default, with a cap; a ratio never exceeds its upper bound.

Every part can be switched on its own (`FedSRDOptions`), so that the paper's ablations are recipes.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from fedsrd import rng
from fedsrd.core import decompose, sparsify
from fedsrd.core.factors import Delta, Factors, Slot, SparseTensor, average
from fedsrd.core.reconstruct import Mean, best_pair
from fedsrd.methods.method import ClientStep, Method, ServerStep, register
from fedsrd.methods.uplink import Fraction, UplinkOptions, sparse_update


class FedSRDOptions(UplinkOptions):
    """Options of both variants: the uplink's, and these of the server.

    Attributes:
        server: "alternate" aggregates full weights and moves one factor in turn (the method); "svd" aggregates full
            weights and sends both factors of their truncated SVD (no decomposition); "average" averages each factor on
            its own (no reconstruction).
        project: "alternate" takes the aggregate's best rank-r approximation first.
        download: which elements of the broadcast stay: "random" ones, divided by their probability; those of largest
            "importance", rescaled as the uplink's; "none" are dropped.
        download_sparsity: share of the broadcast's elements to drop (the paper: 0.8).
        cutoff: singular values below this share of the largest count as zero in the pseudo-inverse.
        damping: Tikhonov damping of the pseudo-inverse, relative to the largest singular value; 0 for none.
    """

    server: Literal["alternate", "svd", "average"] = "alternate"
    project: bool = True
    download: Literal["random", "importance", "none"] = "random"
    download_sparsity: Fraction = 0.8
    cutoff: Fraction = 1e-6
    damping: Annotated[float, Field(ge=0)] = 0.0


@register
class FedSRD(Method):
    """The whole method: the aggregate is projected to the adapter's rank before it is decomposed."""

    name = "fedsrd"
    summary = "importance-sparse uplink, exact aggregation, rank-r projection, alternating sparse downlink"
    Options = FedSRDOptions
    options: FedSRDOptions

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The chosen elements of dB and dA."""
        return sparse_update(before, after, self.options, step)

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """The sparse change of this round's factor, module by module, so that memory holds one module's products."""
        seed = rng.integer(step.seed, "download mask", step.round)
        return {
            slot: self._thinned(slot, moved, state, seed)
            for slot, moved in self._moved(state, deltas, weights, step.round)
        }

    def _moved(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], round_number: int
    ) -> Iterator[tuple[Slot, torch.Tensor]]:
        """Dense changes by slot, before anything of them is dropped."""
        options = self.options
        if options.server == "average":
            for slot, mean in average(state, deltas, weights).items():
                yield slot, mean.dense()
            return
        factor = decompose.factor_of_round(round_number)
        for name, pair in state.items():
            mean_weight = Mean(name, pair, deltas, weights)
            rank = pair.A.shape[0]
            if options.server == "svd":
                best = best_pair(mean_weight.careful(change=False), rank)
                yield Slot(name, "B"), best.B - pair.B
                yield Slot(name, "A"), best.A - pair.A
            else:
                target = rank if options.project else None
                moved = decompose.alternate(mean_weight, factor, target, options.cutoff, options.damping)
                yield Slot(name, factor), moved

    def _thinned(self, slot: Slot, moved: torch.Tensor, state: Factors, seed: int) -> SparseTensor:
        options = self.options
        if options.download == "none" or options.download_sparsity == 0:
            return SparseTensor.from_dense(moved)
        if options.download == "random":
            return decompose.sparsify_at_random(moved, slot, seed, 1.0 - options.download_sparsity)
        scores = sparsify.importance(slot, moved, state, state)
        pruned = sparsify.prune(moved, scores, options.download_sparsity)
        return sparsify.rescale(pruned, moved, options.rescale, options.rescale_cap)


class FedSRDeOptions(FedSRDOptions):
    """Options of FedSRD-e: those of FedSRD without the projection."""

    project: bool = False


@register
class FedSRDe(FedSRD):
    """The efficient variant: no projection, so no singular value decomposition of the aggregate."""

    name = "fedsrd-e"
    summary = "FedSRD without the rank-r projection"
    Options = FedSRDeOptions

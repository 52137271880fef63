"""FedSRD and FedSRD-e: sparsify, reconstruct, decompose.

Yan, Xie, Shen, Fang, Wu, "FedSRD: Sparsify-Reconstruct-Decompose for Communication-Efficient Federated Large Language
Models Fine-Tuning", WWW 2026 (arXiv 2510.04601). One round, t = 1, 2, ...:

1. Client: dB, dA by local training; keep the elements of highest importance, each matrix at its own ratio; rescale.
2. Server: W = sum p_i (B + dB_i)(A + dA_i), factored. FedSRD projects W to rank r; FedSRD-e does not.
3. Server: odd t gives dB = (W - B A) A^+, even t gives dA = B^+ (W - B A); sparsified at random, broadcast.
4. Both: add the same sparse delta.

Where the paper is silent: rounds count from 1, so B moves first; server and clients add the same sparse delta, so they
never drift; the L1 rescale of the authors' program is the default, with a cap; a ratio never exceeds its upper bound.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from fedsrd import rng
from fedsrd.core import decompose, sparsify
from fedsrd.core.factors import Delta, Factors, Slot, difference
from fedsrd.core.reconstruct import Mean
from fedsrd.methods.method import ClientStep, Method, MethodOptions, ServerStep, register

Fraction = Annotated[float, Field(ge=0, lt=1)]


class FedSRDOptions(MethodOptions):
    """Options of both variants.

    Attributes:
        alpha: base ratio of uplink elements to drop (the paper: 0.85 to 0.9).
        upper: largest uplink ratio of one matrix.
        rescale: "l1" gives kept elements the whole delta's L1 norm (the authors' program); "none" leaves them.
        rescale_cap: largest factor of the L1 rescale.
        download_sparsity: share of the broadcast factor's elements to drop at random (the paper: 0.8).
        cutoff: singular values below this share of the largest count as zero in the pseudo-inverse.
        damping: Tikhonov damping of the pseudo-inverse, relative to the largest singular value; 0 for none.
    """

    alpha: Fraction = 0.85
    upper: Fraction = 0.99
    rescale: sparsify.Rescale = "l1"
    rescale_cap: Annotated[float, Field(ge=1)] = 10.0
    download_sparsity: Fraction = 0.8
    cutoff: Fraction = 1e-6
    damping: Annotated[float, Field(ge=0)] = 0.0


class _SRD(Method):
    """What FedSRD and FedSRD-e share: all but whether the mean weight is projected to the adapter's rank."""

    Options = FedSRDOptions
    options: FedSRDOptions
    projects: ClassVar[bool]

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """The most important elements of dB and dA. A matrix at a time: no copy of the whole adapter is made."""
        kept = {}
        for slot, delta in difference(after, before):
            scores = sparsify.importance(slot, delta, before, after)
            ratio = sparsify.adaptive_ratio(scores, self.options.alpha, self.options.upper)
            pruned = sparsify.prune(delta, scores, ratio)
            kept[slot] = sparsify.rescale(pruned, delta, self.options.rescale, self.options.rescale_cap)
        return kept

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """The sparse change of this round's factor, module by module, so that memory holds one module's products."""
        factor = decompose.factor_of_round(step.round)
        keep = 1.0 - self.options.download_sparsity
        seed = rng.integer(step.seed, "download mask", step.round)
        broadcast = {}
        for name, pair in state.items():
            rank = pair.A.shape[0] if self.projects else None
            mean = Mean(name, pair, deltas, weights)
            moved = decompose.alternate(mean, factor, rank, self.options.cutoff, self.options.damping)
            slot = Slot(name, factor)
            broadcast[slot] = decompose.sparsify_at_random(moved, slot, seed, keep)
        return broadcast


@register
class FedSRD(_SRD):
    """The whole method: the aggregate is projected to the adapter's rank before it is decomposed."""

    name = "fedsrd"
    summary = "importance-sparse uplink, exact aggregation, rank-r projection, alternating sparse downlink"
    projects = True


@register
class FedSRDe(_SRD):
    """The efficient variant: no projection, so no singular value decomposition of the aggregate."""

    name = "fedsrd-e"
    summary = "FedSRD without the rank-r projection"
    projects = False

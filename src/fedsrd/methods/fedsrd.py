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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from fedsrd import rng
from fedsrd.core import decompose, lora, sparsify
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import tensor_name
from fedsrd.core.reconstruct import Mean, best_pair
from fedsrd.core.tensors import Delta, Draw, GlobalState, SparseTensor, Tensors, TensorTable, dense_delta
from fedsrd.methods.feedback import ServerFeedback, WithFeedback, compensated_broadcast
from fedsrd.methods.method import ClientContext, Contribution, MethodState, RoundContext, ServerContext, mean
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import COMMON, Fraction, SparsifierOptions, common, sparse, sparse_update


class FedSRDOptions(SparsifierOptions):
    """Options of both variants: the sparsifier's, and these of the server.

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
        decompose_at: "server", as the paper; or "client", where every client decomposes its own update and sends its
            change of this round's factor, ((B + dB_i)(A + dA_i) - B A) A^+ or its mirror image. Without the projection
            the server's step is linear in the clients' weights, so the mean of these is the same step, and a server
            that sees only their sum can make it (FedSRD-e).
        server_feedback: "ef14" keeps what a broadcast does not say for the next one; then nothing of it is rescaled.
    """

    server: Literal["alternate", "svd", "average"] = "alternate"
    project: bool = True
    download: Literal["random", "importance", "none"] = "random"
    download_sparsity: Fraction = 0.8
    cutoff: Fraction = 1e-6
    damping: Annotated[float, Field(ge=0, le=100)] = 0.0
    decompose_at: Literal["server", "client"] = "server"
    server_feedback: ServerFeedback = "none"

    @model_validator(mode="after")
    def _is_linear_at_the_client(self) -> "FedSRDOptions":
        if self.decompose_at == "client" and (self.project or self.server != "alternate"):
            raise ValueError(
                'decompose_at = "client": needs server = "alternate" and project = false (fedsrd-e), because a '
                "projection of the mean is not the mean of projections"
            )
        if self.feedback == "ef21" and self.server != "average":
            raise ValueError(
                f'feedback = "ef21" with server = "{self.server}": the server keeps an estimate of the mean change of '
                'each factor; expected server = "average"'
            )
        return self


@register
class FedSRD(WithFeedback):
    """The whole method: the aggregate is projected to the adapter's rank before it is decomposed."""

    name = "fedsrd"
    needs_lora = True
    summary = "importance-sparse uplink, exact aggregation, rank-r projection, alternating sparse downlink"
    Options = FedSRDOptions
    options: FedSRDOptions

    @property
    def linear(self) -> bool:
        """Where clients decompose, or factors are averaged."""
        options = self.options
        return (options.decompose_at == "client" or options.server == "average") and options.feedback != "ef21"

    @property
    def same_elements(self) -> bool:
        """Where it is linear, with a sparsifier that chooses nothing."""
        return self.linear and self.options.sparsifier in COMMON

    def elements(self, table: TensorTable, context: RoundContext) -> Mapping[str, Draw | None]:
        """All, or this round's part, of both factors, or of the one whose turn it is."""
        names = [spec.name for spec in table.specs]
        if self.options.server == "average":
            return {name: common(self.options, name, context) for name in names}
        factor = decompose.factor_of_round(context.round)
        return {name: common(self.options, name, _turn(context)) for name in names if lora.split(name)[1] == factor}

    @property
    def makes_steps(self) -> bool:
        """Unless the broadcast turns the factors into those of an SVD."""
        return self.options.server != "svd"

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The chosen elements of dB and dA; of this round's factor alone where clients decompose."""
        before = plan.start
        if self.options.decompose_at == "server":
            return sparse_update(before, after, self.options, context)
        own = Contribution(context.client, dense_delta(after, before), 1.0)
        # The other factor stays, so importance weighs with that of the global state.
        return sparse(self._moved(before, [own], context.round), before, before, self.options, _turn(context))

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """The dense change of this round's factor, module by module, so that memory holds one module's products."""
        if self.linear:
            return mean(state, contributions).items()
        moved = self._moved(state.tensors, contributions, context.round)
        return ((name, SparseTensor.from_dense(change)) for name, change in moved)

    def aggregate_sum(
        self, state: GlobalState, total: Delta, context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """The sum itself, where the method is linear."""
        return total.items() if self.linear else super().aggregate_sum(state, total, context)

    def compress(
        self, state: GlobalState, steps: Iterable[tuple[str, SparseTensor]], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """A part of the elements, at random or by importance; with feedback, of the step and what earlier broadcasts
        did not say.
        """
        seed = rng.integer(context.seed, "download mask", context.round)
        if self.options.server_feedback == "none":
            return {name: self._thinned(name, step.dense(), state.tensors, seed) for name, step in steps}, {}
        return compensated_broadcast(
            steps, context, lambda name, whole, _: self._thinned(name, whole, state.tensors, seed)
        )

    def _moved(
        self, tensors: Tensors, contributions: Sequence[Contribution], round_number: int
    ) -> Iterator[tuple[str, Tensor]]:
        """Dense changes by tensor, before anything of them is dropped."""
        options = self.options
        factor = decompose.factor_of_round(round_number)
        deltas, weights = [one.delta for one in contributions], [one.weight for one in contributions]
        for module, pair in lora.pairs_of(tensors).items():
            mean_weight = Mean(module, pair, deltas, weights)
            rank = pair.A.shape[0]
            if options.server == "svd":
                best = best_pair(mean_weight.careful(change=False), rank)
                yield tensor_name(module, "B"), best.B - pair.B
                yield tensor_name(module, "A"), best.A - pair.A
            else:
                target = rank if options.project else None
                moved = decompose.alternate(mean_weight, factor, target, options.cutoff, options.damping)
                yield tensor_name(module, factor), moved

    def _thinned(self, name: str, moved: Tensor, tensors: Tensors, seed: int) -> SparseTensor:
        options = self.options
        if options.download == "none" or options.download_sparsity == 0:
            return SparseTensor.from_dense(moved)
        if options.download == "random" and options.server_feedback == "none":
            return decompose.sparsify_at_random(moved, name, seed, 1.0 - options.download_sparsity)
        if options.download == "random":
            # What is not drawn comes later: the drawn elements are not made to stand for it.
            return SparseTensor.from_draw(moved, name, Draw(seed, 1.0 - options.download_sparsity))
        scores = sparsify.importance(name, moved, tensors, tensors)
        pruned = sparsify.prune(moved, scores, options.download_sparsity)
        return sparsify.rescale(pruned, moved, options.rescale, options.rescale_cap)


_Context = TypeVar("_Context", bound=RoundContext)


def _turn(context: _Context) -> _Context:
    """The context with rounds counted by factor: else a cycle of even length would never come to half of each."""
    return replace(context, round=(context.round + 1) // 2)


class FedSRDeOptions(FedSRDOptions):
    """Options of FedSRD-e: those of FedSRD without the projection."""

    project: bool = False


@register
class FedSRDe(FedSRD):
    """The efficient variant: no projection, so no singular value decomposition of the aggregate."""

    name = "fedsrd-e"
    summary = "FedSRD without the rank-r projection"
    Options = FedSRDeOptions

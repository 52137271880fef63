"""Fed-DARE: FedAvg of deltas that were dropped at random and rescaled, as FedSRD's paper compares with.

The drop-and-rescale is DARE's (Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099): each element
stays with probability 1 - p and is divided by 1 - p, so that its expectation is the whole delta. A payload names the
draw's seed instead of its positions. The broadcast is the mean, with the elements that any client sent.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedsrd import rng
from fedsrd.core.decompose import sparsify_at_random
from fedsrd.core.factors import Delta, Factors, average, difference
from fedsrd.methods.method import ClientStep, Method, MethodOptions, ServerStep, register


class FedDAREOptions(MethodOptions):
    """Options of Fed-DARE: `drop`, the probability p of each element to be dropped."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.9


@register
class FedDARE(Method):
    """Random sparse deltas up, their mean down."""

    name = "fed-dare"
    summary = "FedAvg of randomly dropped, rescaled deltas"
    Options = FedDAREOptions
    options: FedDAREOptions

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """Each element of dB and dA with probability 1 - p, divided by 1 - p."""
        seed = rng.integer(step.seed, "drop", step.round, step.client)
        keep = 1.0 - self.options.drop
        return {slot: sparsify_at_random(delta, slot, seed, keep) for slot, delta in difference(after, before)}

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """sum_i p_i delta_i."""
        return average(state, deltas, weights)

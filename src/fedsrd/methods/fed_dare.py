"""Fed-DARE: FedAvg of deltas that were dropped at random and rescaled, as FedSRD's paper compares with.

The drop-and-rescale is DARE's (Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099): each element
stays with probability 1 - p and is divided by 1 - p, so that its expectation is the whole delta. A payload names the
draw's seed instead of its positions. The broadcast is the mean, with the elements that any client sent.
"""

from typing import Annotated

from pydantic import Field

from fedsrd import rng
from fedsrd.core.decompose import sparsify_at_random
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, Tensors, difference
from fedsrd.methods.fedavg import Averaging
from fedsrd.methods.method import ClientContext, MethodOptions, MethodState
from fedsrd.methods.registry import register


class FedDAREOptions(MethodOptions):
    """Options of Fed-DARE: `drop`, the probability p of each element to be dropped."""

    drop: Annotated[float, Field(ge=0, lt=1)] = 0.9


@register
class FedDARE(Averaging):
    """Random sparse deltas up, their mean down."""

    name = "fed-dare"
    summary = "FedAvg of randomly dropped, rescaled deltas"
    Options = FedDAREOptions
    options: FedDAREOptions

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """Each element of the change with probability 1 - p, divided by 1 - p."""
        seed = rng.integer(context.seed, "drop", context.round, context.client)
        keep = 1.0 - self.options.drop
        changes = difference(after, plan.start)
        return {name: sparsify_at_random(delta, name, seed, keep) for name, delta in changes}, {}

"""Reference points that are no federations: every client alone, and all data in one place.

Nothing but empty payloads travels. `local` trains each client on its own data for all rounds; `centralised` gives one
client everybody's examples: the very ones that the clients would see in the round, one of each client in turn, so that
it sees as many, in as many batches, as the federation in all.
"""

from collections.abc import Sequence

from fedsrd.core.factors import FACTORS, Delta, Factors, LoraPair
from fedsrd.methods.method import ClientStep, Method, ServerStep, register


@register
class LocalOnly(Method):
    """Every client alone: nothing is shared, nothing is sent."""

    name = "local"
    summary = "reference: every client alone, nothing sent"
    personal = True
    reference = True

    def local_start(self, state: Factors, step: ClientStep) -> Factors:
        """The client's own factors; the common start before its first round."""
        return {
            name: LoraPair(*(step.memory.get(f"{name}/{factor}", getattr(pair, factor)) for factor in FACTORS))
            for name, pair in state.items()
        }

    def client_update(self, before: Factors, after: Factors, step: ClientStep) -> Delta:
        """Nothing; all that was learnt stays in the client's memory."""
        for name, pair in after.items():
            step.memory.update({f"{name}/{factor}": getattr(pair, factor) for factor in FACTORS})
        return {}

    def server_update(
        self, state: Factors, deltas: Sequence[Delta], weights: Sequence[float], step: ServerStep
    ) -> Delta:
        """Nothing."""
        return {}


@register
class Centralised(LocalOnly):
    """All data in one place: what a federation gives up for privacy."""

    name = "centralised"
    summary = "reference: all data in one place"
    pooled = True

"""Reference points that are no federations: every client alone, and all data in one place.

Nothing but empty payloads travels. `local` trains each client on its own data for all rounds; `centralised` gives one
client everybody's examples: the very ones that the clients would see in the round, one of each client in turn, so that
it sees as many, in as many batches, as the federation in all.
"""

from collections.abc import Sequence
from dataclasses import replace

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, Tensors
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, ServerContext
from fedsrd.methods.registry import register


@register
class LocalOnly(Method):
    """Every client alone: nothing is shared, nothing is sent."""

    name = "local"
    summary = "reference: every client alone, nothing sent"
    personal = True
    reference = True
    keeps_client_state = True

    @property
    def makes_steps(self) -> bool:
        """No: nothing is broadcast."""
        return False

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """From the client's own tensors; the common start before its first round."""
        return replace(super().local_plan(state, context), start={**state.tensors, **context.memory})

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """Nothing; all that was learnt stays in the client's memory."""
        return {}, dict(after)

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """Nothing."""
        return {}, {}


@register
class Centralised(LocalOnly):
    """All data in one place: what a federation gives up for privacy."""

    name = "centralised"
    summary = "reference: all data in one place"
    pooled = True

"""Cyclic sparsification with error feedback: all clients send the same part of the elements, another one every round.

A seed divides the elements of every tensor into `period` parts. In round t everybody sends part t mod period of its
change and of what it has kept; the mean of these, on the same elements, is broadcast. So no positions travel, the
broadcast is sparse without a choice of its own, and the server needs only the sum of the clients' vectors, as secure
aggregation gives it. The common random mask is that of rand-k with a shared seed; that parts follow one another without
overlap is Perm-K's idea in time (Szlendak et al., arXiv 2110.03300); what waits for its turn is error feedback's
residual (Stich et al., arXiv 1809.07599). A server step above 1 makes up for the wait.

With `momentum` mu, server and clients each keep a velocity u of every element, which costs no bytes since all see the
same broadcasts b: u <- mu u + b, x <- x + u. It is FedAvgM's (Hsu et al., arXiv 1909.06335), but an element also moves
in the rounds in which it does not travel.
"""

from dataclasses import replace

from fedsrd.core.feedback import Feedback
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.server_optimizer import Decay, ServerOptimizerOptions
from fedsrd.core.tensors import Delta, GlobalState, Tensors, TensorSpec, TensorTable, add_to
from fedsrd.methods.fedavg import FedAvg, FedAvgOptions
from fedsrd.methods.method import ClientContext, MethodState, RoundContext
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Sparsifier

VELOCITY = ".velocity"


class CyclicOptions(FedAvgOptions):
    """Options of FedAvg, with a cyclic sparsifier and feedback at the clients, and `momentum`: mu, which server and
    clients apply alike.
    """

    sparsifier: Sparsifier = "cyclic"
    feedback: Feedback = "ef14"
    momentum: Decay = 0.0


@register
class Cyclic(FedAvg):
    """The same part of all updates, every part in its turn."""

    name = "cyclic"
    summary = "all clients send the same part of the elements, each in its turn; the rest is kept"
    Options = CyclicOptions
    default_optimizer = ServerOptimizerOptions(name="sgd", learning_rate=1.6)
    options: CyclicOptions

    def state_table(self, table: TensorTable) -> TensorTable:
        """The model's tensors, and with momentum a velocity of each."""
        if not self.options.momentum:
            return table
        return TensorTable(table.specs + tuple(TensorSpec(spec.name + VELOCITY, spec.shape) for spec in table.specs))

    def uplink_table(self, table: TensorTable) -> TensorTable:
        """The model's tensors."""
        return TensorTable(tuple(spec for spec in table.specs if not spec.name.endswith(VELOCITY)))

    def downlink_table(self, table: TensorTable, clients: int) -> TensorTable:
        """The model's tensors."""
        return self.uplink_table(table)

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """Everything, from the model's tensors."""
        start = self.model(state, {})
        return replace(super().local_plan(state, context), start=start, trained=tuple(start))

    def apply(self, state: GlobalState, broadcast: Delta, context: RoundContext) -> GlobalState:
        """X + b; with momentum u <- mu u + b, x + u."""
        if not self.options.momentum:
            return super().apply(state, broadcast, context)
        model, velocity = {}, {}
        for name, tensor in self.model(state, {}).items():
            moving = state.tensors[name + VELOCITY] * self.options.momentum
            if name in broadcast:
                add_to(moving, broadcast[name], 1.0)
            model[name], velocity[name + VELOCITY] = tensor + moving, moving
        return state.following({**model, **velocity})

    def model(self, state: GlobalState, memory: MethodState) -> Tensors:
        """Without the velocities."""
        return {name: tensor for name, tensor in state.tensors.items() if not name.endswith(VELOCITY)}

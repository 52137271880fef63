"""Cyclic sparsification with error feedback: all clients send the same part of the elements, another one every round.

A seed divides the elements of every tensor into `period` parts. In round t everybody sends part t mod period of its
change and of what it has kept; the mean of these, on the same elements, is broadcast. So no positions travel, the
broadcast is sparse without a choice of its own, nothing is compressed twice, and the server needs only the sum of the
clients' vectors, as secure aggregation gives it. The common random mask is that of rand-k with a shared seed; that
parts follow one another without overlap is Perm-K's idea in time (Szlendak et al., arXiv 2110.03300); what waits for
its turn is error feedback's residual (Stich et al., arXiv 1809.07599). A server step above 1 makes up for the wait.
"""

from fedsrd.core.feedback import Feedback
from fedsrd.core.server_optimizer import ServerOptimizerOptions
from fedsrd.methods.fedavg import FedAvg, FedAvgOptions
from fedsrd.methods.registry import register
from fedsrd.methods.sparsifier import Sparsifier


class CyclicOptions(FedAvgOptions):
    """Options of FedAvg, with a cyclic sparsifier and feedback at the clients."""

    sparsifier: Sparsifier = "cyclic"
    feedback: Feedback = "ef14"


@register
class Cyclic(FedAvg):
    """The same part of all updates, every part in its turn."""

    name = "cyclic"
    summary = "all clients send the same part of the elements, each in its turn; the rest is kept"
    Options = CyclicOptions
    default_optimizer = ServerOptimizerOptions(name="sgd", learning_rate=1.6)
    keeps_client_state = True

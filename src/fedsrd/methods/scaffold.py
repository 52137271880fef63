"""SCAFFOLD: control variates take the clients' drift out of their gradients.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020 (arXiv 1910.06378).
Server and every client i keep a control variate, c and c_i, of the model's own shapes; clients train on

    g(y) - c_i + c

and update theirs to c_i+, the mean of the gradients g that they met: the paper's option II,
c_i - c + (x - y) / (K eta), which is that mean for plain SGD, and is none for an adaptive local optimizer such as ours.
Both changes travel:

    x = x + eta_g sum p_i (y_i - x)            c = c + (|S| / N) mean_i (c_i+ - c_i)

so updates and broadcasts are twice an adapter. c is a part of the state that all hold alike, c_i the client's own. With
a lossy number type c_i+ is what the server read, so that c stays the mean of all c_i exactly as it does on paper.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, TensorSpec, TensorTable, average, dense_delta
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodState, ServerContext
from fedsrd.methods.registry import register

CONTROL = ".control"


class Correction:
    """Adds c - c_i to every step's gradients, and takes the mean of the gradients before that."""

    def __init__(self, correction: Tensors) -> None:
        self._correction = correction
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def __call__(self, gradients: Mapping[str, Tensor]) -> None:
        self._steps += 1
        for name, gradient in gradients.items():
            self._sums[name] = gradient.float() + self._sums[name] if name in self._sums else gradient.float().clone()
            gradient.add_(self._correction[name].to(gradient.device, gradient.dtype))

    def mean(self, name: str) -> Tensor:
        """Mean gradient of one tensor over the round, float32, on the CPU; zero where there was none."""
        if name not in self._sums:
            return torch.zeros_like(self._correction[name])
        return (self._sums[name] / self._steps).cpu()


@register
class Scaffold(Method):
    """FedAvg with control variates."""

    name = "scaffold"
    summary = "FedAvg with control variates against client drift"
    keeps_client_state = True
    hooks_gradients = True
    counts_alike = True

    def state_table(self, table: TensorTable) -> TensorTable:
        """The model's tensors, and a control variate of each."""
        control = tuple(TensorSpec(spec.name + CONTROL, spec.shape) for spec in table.specs)
        return TensorTable(table.specs + control)

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """Everything, with c - c_i added to the gradients."""
        start = self.model(state, {})
        correction = {name: state.tensors[name + CONTROL] - _own(name, state, context) for name in start}
        plan = super().local_plan(state, context)
        return replace(plan, start=start, trained=tuple(start), gradient_hook=Correction(correction))

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The model's change and the control variate's, whole; the latter as the server will read it is kept."""
        if not isinstance(plan.gradient_hook, Correction):
            raise TypeError("SCAFFOLD's update needs the plan of its own local_plan")
        delta = dense_delta(after, plan.start)
        own = {name: context.memory.get(name + CONTROL, torch.zeros_like(tensor)) for name, tensor in after.items()}
        for name, before in own.items():
            delta[name + CONTROL] = SparseTensor.from_dense(plan.gradient_hook.mean(name) - before)
        arrives = context.received(delta)
        return delta, {
            name + CONTROL: before + arrives[name + CONTROL].dense() if name + CONTROL in arrives else before
            for name, before in own.items()
        }

    def aggregate(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> Iterable[tuple[str, SparseTensor]]:
        """Sum p_i of the model's changes; |S| / N times the plain mean of the control variates'."""
        deltas = [one.delta for one in contributions]
        model = list(self.model(state, {}))
        yield from average(model, deltas, [one.weight for one in contributions]).items()
        share = 1.0 / max(context.clients, len(contributions))
        yield from average([name + CONTROL for name in model], deltas, [share] * len(deltas)).items()

    def is_step(self, name: str) -> bool:
        """Of the model's tensors, not of control variates."""
        return not name.endswith(CONTROL)

    def model(self, state: GlobalState, memory: MethodState) -> Tensors:
        """Without the control variates."""
        return {name: tensor for name, tensor in state.tensors.items() if not name.endswith(CONTROL)}


def _own(name: str, state: GlobalState, context: ClientContext) -> Tensor:
    return context.memory.get(name + CONTROL, torch.zeros_like(state.tensors[name]))

"""FedDyn: each client's loss gets a linear and a quadratic term, so that its optimum is the federation's.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021 (arXiv 2111.04263). A client minimises

    L_i(theta) - <lambda_i, theta> + alpha/2 ||theta - theta_global||^2
    lambda_i <- lambda_i - alpha (theta_i - theta_global)

and the server, with N clients in all of which S took part,

    h <- h - alpha / N sum_(i in S) (theta_i - theta_global),       theta_global <- sum p_i theta_i - h / alpha.

lambda_i lies at the client, h at the server; an update is as large as FedAvg's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Delta, GlobalState, SparseTensor, Tensors, add_weighted, dense_delta
from fedsrd.methods.method import ClientContext, Contribution, Method, MethodOptions, MethodState, ServerContext
from fedsrd.methods.registry import register


class FedDynOptions(MethodOptions):
    """Options of FedDyn: `alpha`, the strength of the dynamic regulariser (the paper: 0.1, 0.01 or 0.001)."""

    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.01


@register
class FedDyn(Method):
    """FedAvg with dynamic regularisation."""

    name = "feddyn"
    summary = "FedAvg with a dynamic regulariser at every client"
    Options = FedDynOptions
    keeps_client_state = True
    hooks_gradients = True
    counts_alike = True
    options: FedDynOptions

    def local_plan(self, state: GlobalState, context: ClientContext) -> LocalPlan:
        """Everything, with -lambda_i added to the gradients and a proximal term of strength alpha."""
        linear = dict(context.memory)

        def subtract(gradients: Mapping[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                if name in linear:
                    gradient.sub_(linear[name].to(gradient.device, gradient.dtype))

        plan = super().local_plan(state, context)
        return replace(plan, proximal=self.options.alpha, gradient_hook=subtract)

    def client_update(self, plan: LocalPlan, after: Tensors, context: ClientContext) -> tuple[Delta, MethodState]:
        """The whole change; lambda_i moves by what the server will read of it."""
        delta = dense_delta(after, plan.start)
        arrives = context.received(delta)
        kept = {}
        for name, tensor in after.items():
            before = context.memory.get(name, torch.zeros_like(tensor))
            kept[name] = before - self.options.alpha * arrives[name].dense() if name in arrives else before
        return delta, kept

    def server_update(
        self, state: GlobalState, contributions: Sequence[Contribution], context: ServerContext
    ) -> tuple[Delta, MethodState]:
        """The broadcast of sum p_i (theta_i - theta_global) - h / alpha, with the new h, which is kept."""
        deltas, weights = [one.delta for one in contributions], [one.weight for one in contributions]
        share = -self.options.alpha / max(context.clients, len(deltas))
        kept: dict[str, Tensor] = {}

        def corrected() -> Iterator[tuple[str, SparseTensor]]:
            for name, tensor in state.tensors.items():
                mean = add_weighted(torch.zeros(tensor.shape), name, deltas, weights)
                before = context.memory.get(f"h/{name}", torch.zeros_like(tensor))
                h = add_weighted(before.clone(), name, deltas, [share] * len(deltas))
                kept[f"h/{name}"] = h
                yield name, SparseTensor.from_dense(mean - h / self.options.alpha)

        delta, memory = self._broadcast(state, corrected(), context)
        return delta, {**memory, **kept}

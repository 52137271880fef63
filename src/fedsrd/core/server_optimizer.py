"""Server optimizers: the clients' aggregate as a pseudo-gradient, for any method whose broadcast is a step.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (arXiv 2003.00295), algorithm 2: with Delta the clients' mean
change,

    m = beta1 m + (1 - beta1) Delta
    v = v + Delta^2                                       FedAdagrad
    v = v - (1 - beta2) Delta^2 sign(v - Delta^2)         FedYogi
    v = beta2 v + (1 - beta2) Delta^2                     FedAdam
    x = x + eta m / (sqrt(v) + tau)

v starts at tau^2. With `bias_correction` m and v start at zero and are divided by 1 - beta^t, t counting the tensor's
own steps, as Adam's authors do (Kingma and Ba, arXiv 1412.6980).

"sgd" is FedAvg with a server learning rate; with `momentum` FedAvgM (Hsu et al., arXiv 1909.06335), u = mu u + Delta,
x = x + eta u; with `nesterov` DiLoCo's outer optimizer (Douillard et al., arXiv 2311.08105),
x = x + eta (Delta + mu u).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from fedsrd.core.tensors import SparseTensor

Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizerOptions(BaseModel):
    """The keys of a recipe's [server_optimizer].

    Attributes:
        name: the rule.
        learning_rate: eta, by which the step is multiplied.
        momentum: mu of "sgd".
        nesterov: whether that momentum looks ahead.
        beta1: decay of the first moment (not of "sgd").
        beta2: decay of the second moment ("adam", "yogi").
        epsilon: the paper's tau, added to the root of the second moment: an element on which clients do not agree moves
            little.
        bias_correction: start the moments at zero and divide by 1 - beta^t ("adam", "yogi").
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["sgd", "adam", "yogi", "adagrad"]
    learning_rate: Annotated[float, Field(gt=0, le=100)]
    momentum: Decay = 0.0
    nesterov: bool = False
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    epsilon: Annotated[float, Field(gt=0, le=1e6)] = 1e-3
    bias_correction: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "ServerOptimizerOptions":
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd; {self.name} has beta1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true: expected a momentum above 0")
        if self.bias_correction and self.name not in ("adam", "yogi"):
            raise ValueError(f"bias_correction = true: {self.name} has none; adam and yogi do")
        return self


class ServerOptimizer:
    """Makes the server's step of an aggregate, one tensor at a time. Keeps nothing itself."""

    def __init__(self, options: ServerOptimizerOptions) -> None:
        self.options = options

    def step(
        self, name: str, aggregate: SparseTensor, memory: Mapping[str, Tensor]
    ) -> tuple[SparseTensor, dict[str, Tensor]]:
        """The step of one tensor, and what is to be kept for it.

        Args:
            name: the tensor's.
            aggregate: the clients' mean change of it.
            memory: what was kept of the last round, under names of any tensor.

        Returns:
            The step, sparse where the aggregate is and there is no momentum; and new entries for the memory.
        """
        o = self.options
        if o.name == "sgd" and not o.momentum:
            return aggregate.scaled(o.learning_rate), {}
        mean = aggregate.dense()
        if o.name == "sgd":
            key = f"optimizer/momentum/{name}"
            velocity = memory[key] * o.momentum + mean if key in memory else mean
            ahead = mean + o.momentum * velocity if o.nesterov else velocity
            return SparseTensor.from_dense(o.learning_rate * ahead), {key: velocity}
        return self._adaptive(name, mean, memory)

    def _adaptive(
        self, name: str, mean: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[SparseTensor, dict[str, Tensor]]:
        o = self.options
        keys = f"optimizer/first/{name}", f"optimizer/second/{name}"
        first = memory.get(keys[0], torch.zeros_like(mean)) * o.beta1 + (1 - o.beta1) * mean
        start = torch.zeros_like(mean) if o.bias_correction else torch.full_like(mean, o.epsilon**2)
        before, square = memory.get(keys[1], start), mean.square()
        if o.name == "adagrad":
            second = before + square
        elif o.name == "yogi":
            second = before - (1 - o.beta2) * square * torch.sign(before - square)
        else:
            second = before * o.beta2 + (1 - o.beta2) * square
        rate, root, kept = o.learning_rate, second, {keys[0]: first, keys[1]: second}
        if o.bias_correction:
            # Steps of this tensor, not rounds: a method may move it in some rounds only.
            steps = int(memory.get(f"optimizer/steps/{name}", torch.zeros(()))) + 1
            kept[f"optimizer/steps/{name}"] = torch.tensor(float(steps))
            rate = o.learning_rate / (1 - o.beta1**steps)
            root = second / (1 - o.beta2**steps)
        # A large square may take Yogi's second moment below zero by a rounding.
        step = rate * first / (root.clamp(min=0).sqrt() + o.epsilon)
        return SparseTensor.from_dense(step), kept

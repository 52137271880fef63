"""What one client is to do in a round of local training, as data: the hook for what the literature changes there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedsrd.core.tensors import BaseDelta, Tensors


class GradientHook(Protocol):
    """Called in every optimizer step with the step's gradients, before they are clipped."""

    def __call__(self, gradients: Mapping[str, Tensor]) -> None:
        """Reads the gradients (float32, on the training device), or changes them in place."""


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """One round of local training.

    Attributes:
        start: what training starts from, every trained tensor of the model, float32.
        trained: names of those that train; the others stay as they are.
        base_delta: change of the frozen weights.
        proximal: mu of mu/2 ||theta - start||^2, added to the loss (FedProx, arXiv 1812.06127).
        gradient_hook: told every step's gradients; None for none.
    """

    start: Tensors
    trained: tuple[str, ...]
    base_delta: BaseDelta = field(default_factory=dict)
    proximal: float = 0.0
    gradient_hook: GradientHook | None = None

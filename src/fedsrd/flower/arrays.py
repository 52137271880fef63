"""The adapter as Flower's arrays: what a project gives to the strategy, checked, and what it gets back."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedsrd.core.tensors import Tensors
from fedsrd.errors import ModelError
from fedsrd.text import foreign
from fedsrd.training.models import adapter_tensors, tensors_of_adapter

HOW = "expected ArrayRecord(get_peft_model_state_dict(model)) of a PEFT model with LoRA"


def tensors_of(initial_arrays: Any) -> dict[str, Tensor]:
    """A project's first arrays as the tensors of an adapter, float32.

    Raises:
        ModelError: they are no ArrayRecord, not a LoRA adapter's under PEFT's names, not in float32, or not finite.
    """
    if not isinstance(initial_arrays, ArrayRecord):
        raise ModelError(f"initial_arrays is a {type(initial_arrays).__name__}; {HOW}")
    if not initial_arrays:
        raise ModelError(f"initial_arrays is empty; {HOW}")
    state: Mapping[str, Tensor] = initial_arrays.to_torch_state_dict()
    try:
        tensors = tensors_of_adapter(state)
    except ModelError as error:
        raise ModelError(f"initial_arrays: {error}; {HOW}: FedSRD sends adapters, and no other weights") from None
    if strange := sorted(adapter_tensors(tensors).keys() ^ state.keys()):
        raise ModelError(f"initial_arrays: {foreign(strange[0], 100)!r} is not under PEFT's name for it; {HOW}")
    for name, tensor in state.items():
        if wrong := not_float32(tensor):
            raise ModelError(f"initial_arrays: {foreign(name, 100)!r} {wrong}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"initial_arrays: {foreign(name, 100)!r} holds NaN or infinity; expected numbers")
    return tensors


def not_float32(tensor: Tensor) -> str:
    """What is wrong with a tensor's type, to be put behind its name; "" for float32."""
    if tensor.dtype == torch.float32:
        return ""
    return (
        f"is {str(tensor.dtype).removeprefix('torch.')}; expected float32, because a step of training is often smaller "
        "than what half precision can add: keep the adapter's parameters in float32 (the frozen base may have any type)"
    )


def arrays_of(tensors: Tensors) -> ArrayRecord:
    """An adapter's tensors as arrays under PEFT's names."""
    return ArrayRecord({name: tensor.clone() for name, tensor in adapter_tensors(tensors).items()})

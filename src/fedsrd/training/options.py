"""How a client trains and how its base model is loaded: declared here, once, and named by recipes as their tables."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 10**8
"""Sequences that a client trains on in a round."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingOptions(_Options):
    """One client's local fine-tuning in one round; AdamW, fresh each round, constant rate.

    Attributes:
        steps: of the optimizer, in a round.
        batch_size: sequences a forward pass.
        accumulation: forward passes a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        max_length: tokens of a sequence.
        prompt: the style in which an instruction is put to the model.
        packing: a batch's sequences lie one behind the other without padding, each seeing itself only: the same
            gradients, and no time spent on padding.
        clients_at_once: clients whose adapters are trained in one pass with one base model, where one process has
            several; > 1 is faster on a GPU, needs memory for so many, and gives other last digits. With packing or
            dropout, one trains after the other all the same.
    """

    steps: Annotated[int, Field(ge=1, le=10**6)] = 10
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12)] = 1.0
    max_length: Annotated[int, Field(ge=8, le=1 << 20)] = 512
    prompt: Literal["chat", "alpaca", "plain"] = "chat"
    packing: bool = False
    clients_at_once: Annotated[int, Field(ge=1, le=4096)] = 1

    @model_validator(mode="after")
    def _drawn_at_once(self) -> "TrainingOptions":
        # A round's examples are chosen before its first step.
        if self.steps * self.batch_size * self.accumulation > MOST:
            raise ValueError(f"steps x batch_size x accumulation is more than {MOST} sequences a round")
        return self


class BaseOptions(_Options):
    """How a base model is loaded.

    Attributes:
        revision: a branch, tag or commit of the hub.
        dtype: of the weights, and of computing.
        device: "auto" is the first GPU, else the CPU; or "cpu", "cuda", "cuda:N".
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        quantization: "nf4": the base in 4 bits with double quantisation (QLoRA, arXiv 2305.14314), by bitsandbytes.
        attention: how attention is computed; "auto" is what transformers chooses.
    """

    revision: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: str = "auto"
    gradient_checkpointing: bool = False
    quantization: Literal["none", "nf4"] = "none"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"

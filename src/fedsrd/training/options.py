"""How a client trains and how its base model is loaded: declared here, once, and named by recipes as their tables."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsrd.training.schedule import Kind, factor

MOST = 10**8
"""Sequences that a client trains on in a round."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingOptions(_Options):
    """One client's local fine-tuning in one round, by an AdamW that begins anew each round.

    Attributes:
        steps: of the optimizer, in a round.
        batch_size: sequences a forward pass.
        accumulation: forward passes a step.
        learning_rate: of AdamW; the highest, where a schedule is said.
        schedule: how the rate falls over the rounds of the federation: "constant", "linear" or "cosine".
        warmup: rounds at the beginning in which it rises by equal parts.
        round_schedule: the same over the steps of a round.
        round_warmup: steps at the beginning of a round in which it rises.
        final: share of the rate that a schedule falls towards.
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
    schedule: Kind = "constant"
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 0
    round_schedule: Kind = "constant"
    round_warmup: Annotated[int, Field(ge=0, le=10**6)] = 0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
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
        if self.round_warmup >= self.steps and self.round_warmup:
            raise ValueError(f"round_warmup = {self.round_warmup}: expected fewer than steps = {self.steps}")
        return self

    def rate(self, round_number: int, rounds: int, step: int) -> float:
        """The learning rate.

        Args:
            round_number: from 1.
            rounds: of the federation.
            step: of the round, from 0.
        """
        over_all = factor(self.schedule, round_number - 1, rounds, warmup=self.warmup, final=self.final)
        within = factor(self.round_schedule, step, self.steps, warmup=self.round_warmup, final=self.final)
        return self.learning_rate * over_all * within

    def fingerprint(self) -> str:
        """All of it as JSON; without the schedule where there is none, as before there were any."""
        kept = {"schedule", "warmup", "round_schedule", "round_warmup", "final"}
        silent = {name for name in kept if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump_json(exclude=kept if silent == kept else None)


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

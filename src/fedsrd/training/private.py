"""Local training under differential privacy of examples: DP-SGD (Abadi et al., CCS 2016, arXiv 1607.00133) with AdamW.

Each step takes every example with the same small chance (Poisson sampling), clips each one's gradient to a norm, adds
noise to their sum, and divides by the number of examples that a step takes on average; AdamW moves by that. Gradients
by example are Opacus's (arXiv 2109.12298). An example's loss is the mean over its response's tokens, so that a long
answer weighs no more than a short one. Whatever a method does with the gradients (hooks, proximal terms), it does with
the noised ones, which takes nothing from the guarantee; `max_grad_norm` is not used, since `clip` takes its place.

Which examples a step takes, its noise and its dropout are drawn from a secret and from all that the step depends on
(`privacy.stream`): a round that is trained again from the same state gives the same bytes and tells nothing new.
"""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import digest
from fedsrd.data.prompt import Encoded
from fedsrd.errors import ModelError, PrivacyError
from fedsrd.privacy.accounting import Event, Spent
from fedsrd.privacy.stream import Stream, derived
from fedsrd.training.batches import collate, response_losses
from fedsrd.training.models import AdaptedModel
from fedsrd.training.options import TrainingOptions
from fedsrd.training.sft import LocalTrainer, OnStep, Trained, pad_id

_SAMPLED = 4096
"""Values of each frozen weight that tell one base model from another."""


class Account(Protocol):
    """Who keeps the books (`privacy.ledger`)."""

    def charge(self, event: Event, fingerprint: str) -> Spent:
        """Writes the steps down before they are made; what the run has given away with them.

        Args:
            event: the steps.
            fingerprint: of training that would give the same bytes again: it costs once. "" where it may not.

        Raises:
            PrivacyError: they would go beyond the budget. Nothing was written.
        """


@dataclass(frozen=True)
class Privacy:
    """How a client's examples are protected.

    Attributes:
        noise_multiplier: standard deviation of the noise in a step's sum of gradients, in clips.
        clip: L2 norm to which an example's gradient is scaled down.
        secret: 32 bytes that noise and sampling come from (`privacy.stream`).
        account: told of every round before it is trained.
        tell_loss: whether the mean training loss is told: it has no noise, so it is outside the guarantee.
    """

    noise_multiplier: float
    clip: float
    secret: bytes
    account: Account
    tell_loss: bool = False


def refuse_unfit(options: TrainingOptions, *, gradient_checkpointing: bool = False) -> None:
    """Raises PrivacyError where there are no gradients by example to be had."""
    if options.packing:
        raise PrivacyError(
            "training.packing = true: packed examples lie in one sequence, whose gradient no clip takes apart; "
            "expected packing = false with differential privacy of examples"
        )
    if gradient_checkpointing:
        raise PrivacyError(
            "model.gradient_checkpointing = true: Opacus sees every layer's input twice then, and its gradients by "
            "example are wrong; expected false with differential privacy of examples, and a smaller batch_size"
        )


class PrivateTrainer(LocalTrainer):
    """As `LocalTrainer`, under differential privacy of examples. `batch_size` is what one pass takes; how many a step
    takes varies, with batch_size x accumulation on average.

    Raises:
        PrivacyError: the options do not go with it (`refuse_unfit`).
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        examples: Sequence[Encoded],
        options: TrainingOptions,
        client: str,
        seed: int,
        privacy: Privacy,
        rounds: int = 1,
    ) -> None:
        super().__init__(adapted, examples, options, client, seed, rounds)
        checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in adapted.model.modules())
        refuse_unfit(options, gradient_checkpointing=checkpointing)
        self.privacy = privacy

    @property
    def rate(self) -> float:
        """Chance of each example to be in a step."""
        return sampling_rate(self.options, self.count)

    def train(self, plan: LocalPlan, round_number: int, on_step: OnStep) -> Trained:
        """As `LocalTrainer.train`. The loss that `on_step` is told is the exact mean over the step's examples (NaN of a
        step without any), and must stay where the data is.

        Raises:
            PrivacyError: the budget does not allow it; nothing was trained.
            ModelError: the model mixes examples of a batch, so that none has a gradient of its own.
        """
        privacy, options = self.privacy, self.options
        context = self._context(plan, round_number)
        event = Event(noise_multiplier=privacy.noise_multiplier, sampling_rate=self.rate, steps=options.steps)
        # A hook has a memory that is not in the context, so training with one is never taken for the same again.
        spent = privacy.account.charge(event, "" if plan.gradient_hook else context.hex())
        self.adapted.set_tensors(plan.start, plan.base_delta)
        named = self.adapted.parameters(plan.trained)
        anchors = {name: p.detach().clone() for name, p in named.items()} if plan.proximal else {}

        def shaped(gradients: Mapping[str, Tensor]) -> None:
            # On noised gradients: all of this is post-processing.
            if plan.gradient_hook is not None:
                plan.gradient_hook(gradients)
            for name, anchor in anchors.items():
                gradients[name].add_(named[name].detach() - anchor, alpha=plan.proximal)

        total, counted = 0.0, 0
        self.adapted.model.train()
        devices = [self.adapted.device] if self.adapted.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _gradients_by_example(self.adapted.model):
            adamw = torch.optim.AdamW(list(named.values()), lr=options.learning_rate, weight_decay=options.weight_decay)
            optimizer = _optimizer(adamw, privacy, self.rate * self.count)
            for step in range(options.steps):
                where = derived(privacy.secret, "step", context, step, digest(named))
                self.set_rate(adamw, round_number, step)
                losses = self._step(optimizer, named, where, shaped)
                total += sum(losses)
                counted += len(losses)
                # No early end where a loss is not finite: that would say something of an example, without noise.
                on_step(step + 1, sum(losses) / len(losses) if losses else math.nan)
        told = total / counted if privacy.tell_loss and counted else None
        return Trained(self.adapted.tensors(), told, spent)

    def _step(self, optimizer: Any, named: Mapping[str, Tensor], where: bytes, shaped: Any) -> list[float]:
        """One step; `where` is a secret of all that it depends on. Gives the losses of its examples."""
        taken = Stream(where, "sample").uniform(self.count) < self.rate
        chosen = [example for example, is_in in zip(self.examples, taken, strict=True) if is_in]
        torch.manual_seed(int(Stream(where, "dropout").words(1)[0] >> 1))
        size, pad = self.options.batch_size, pad_id(self.adapted)
        losses: list[float] = []
        for at in range(0, len(chosen), size):
            micro = chosen[at : at + size]
            found = response_losses(self.adapted.model, collate(micro, pad), self.adapted.device)
            tokens = torch.tensor([max(len(e.response), 1) for e in micro], device=found.device)
            mean = found / tokens
            mean.sum().backward()  # type: ignore[no-untyped-call, unused-ignore]
            _check(named, len(micro))
            optimizer.accumulate()
            losses += mean.tolist()
        optimizer.noised_step(named, where, shaped)
        return losses

    def _context(self, plan: LocalPlan, round_number: int) -> bytes:
        """A secret that stands for all of a round's training but its hook."""
        privacy = self.privacy
        return derived(
            privacy.secret,
            "dp-sgd",
            round_number,
            self.seed,
            digest(plan.start, plan.base_delta),
            "\n".join(plan.trained),
            repr(plan.proximal),
            self.options.fingerprint(),
            repr((privacy.noise_multiplier, privacy.clip, self.rate)),
            _data_digest(self.examples),
            base_digest(self.adapted.model),
        )


def sampling_rate(options: TrainingOptions, examples: int) -> float:
    """Chance of each of so many examples to be in a step of batch_size x accumulation on average; 1 of fewer."""
    return min(1.0, options.batch_size * options.accumulation / examples)


def _data_digest(examples: Sequence[Encoded]) -> bytes:
    hasher = hashlib.blake2b(digest_size=32)
    for example in examples:
        hasher.update(repr((list(example.prompt), list(example.response))).encode())
    return hasher.digest()


def base_digest(model: Any) -> bytes:
    """Tells one frozen base from another: names, shapes, types and some thousand values of every weight."""
    hasher = hashlib.blake2b(digest_size=32)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLED)].to("cpu", torch.float32)
        hasher.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        hasher.update(some.contiguous().numpy().tobytes())
    return hasher.digest()


def _check(named: Mapping[str, Tensor], count: int) -> None:
    for name, parameter in named.items():
        found = getattr(parameter, "grad_sample", None)
        if not isinstance(found, Tensor) or len(found) != count:
            raise ModelError(
                f"layer {name} sees other rows than the batch's examples (a mixture of experts?), so that no example "
                "has a gradient of its own; this model cannot be trained under differential privacy of examples"
            )


@contextlib.contextmanager
def _gradients_by_example(model: Any) -> Iterator[None]:
    """Inside, backward passes leave every example's gradient at the model's trained parameters."""
    from opacus.grad_sample import GradSampleHooks

    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # Of layers whose input has no gradient: true, and meant.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()
        for module in model.modules():
            for name in ("activations", "max_batch_len"):
                if name in module.__dict__:
                    delattr(module, name)


def _optimizer(inner: torch.optim.Optimizer, privacy: Privacy, expected: float) -> Any:
    from opacus.optimizers import DPOptimizer

    class Noised(DPOptimizer):  # type: ignore[misc, unused-ignore]
        """Opacus's, which clips and sums, with noise of ours: its own comes from a generator that is no secret's."""

        def accumulate(self) -> None:
            """Clips what the last backward pass left, and adds it up. A gradient that is not finite has no norm to be
            clipped to, and counts as zero.
            """
            samples = [parameter.grad_sample for parameter in self.params]
            finite = torch.stack([sample.flatten(1).isfinite().all(1) for sample in samples]).all(0)
            if not bool(finite.all()):
                for sample in samples:
                    sample[~finite] = 0.0
            self.clip_and_accumulate()
            for parameter in self.params:
                parameter.grad_sample = None

        def noised_step(self, named: Mapping[str, Any], where: bytes, shaped: Any) -> None:
            """Noise on the sum, the mean of it, the method's changes, and the step. Of no examples, noise alone."""
            sums = {name: torch.zeros_like(p) if p.summed_grad is None else p.summed_grad for name, p in named.items()}
            # What is noised is in the noise's name: two sums never have one noise, whatever made them differ.
            noise = Stream(where, "noise", digest(sums))
            std = self.noise_multiplier * self.max_grad_norm
            for name, found in sums.items():
                drawn = torch.from_numpy(noise.normal(found.numel())).view(found.shape)
                noisy = (found.to("cpu", torch.float64) + std * drawn) / self.expected_batch_size
                named[name].grad = noisy.to(found.device, found.dtype)
                named[name].summed_grad = None
            shaped({name: p.grad for name, p in named.items() if p.grad is not None})
            self.original_optimizer.step()
            self.original_optimizer.zero_grad()

    return Noised(
        inner,
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.clip,
        expected_batch_size=expected,
    )

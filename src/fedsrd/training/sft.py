"""Supervised fine-tuning of one client's adapter for one round: the plainest loop that does it.

TRL's SFTTrainer does the same; built anew each round, as a fresh optimizer asks, it took 1.0 s a client and round more
to set up and computes the prompt's logits too (figures: benchmarks/README.md). FedSRD adds nothing to training
itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedsrd import rng
from fedsrd.core.factors import Factor, Factors, LoraPair
from fedsrd.data.prompt import Encoded
from fedsrd.training.batches import collate, draw, response_loss
from fedsrd.training.models import AdaptedModel

OnStep = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class SFTOptions:
    """As a recipe's [training] table: AdamW at a constant rate, fresh each round."""

    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round of local training gives: the factors after it, and the mean loss a response token in nats."""

    factors: dict[str, LoraPair]
    loss: float


class LocalTrainer:
    """One client's examples and how it trains on them; the model is lent by whoever runs it."""

    def __init__(
        self, adapted: AdaptedModel, examples: Sequence[Encoded], options: SFTOptions, client: str, seed: int
    ) -> None:
        if not examples:
            raise ValueError(f"client {client} has no examples")
        self.adapted = adapted
        self.examples = examples
        self.options = options
        self.client = client
        self.seed = seed

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.examples)

    def train(self, start: Factors, round_number: int, trained: Sequence[Factor], on_step: OnStep) -> Trained:
        """Trains from `start` for one round. The result follows from the arguments, the examples and the seed alone.

        A loss that is no longer finite ends the round early: the factors come back as they are, and the caller must not
        send them.

        Args:
            start: the global factors.
            round_number: from 1; decides which examples come.
            trained: the factors that train.
            on_step: called after each optimizer step with its number (from 1) and loss.
        """
        options, model = self.options, self.adapted.model
        self.adapted.set_factors(start)
        parameters = self.adapted.parameters(trained)
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        each = options.batch_size * options.accumulation
        wanted = each * options.steps
        order = draw(self.count, wanted, (round_number - 1) * wanted, self.seed, self.client)
        pad = self.adapted.tokenizer.pad_token_id
        pad = self.adapted.tokenizer.eos_token_id if pad is None else pad
        total = 0.0
        model.train()
        devices = [self.adapted.device] if self.adapted.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(rng.integer(self.seed, "dropout", self.client, round_number))
            for step in range(options.steps):
                chosen = [self.examples[i] for i in order[step * each : (step + 1) * each]]
                batches = [
                    collate(chosen[at : at + options.batch_size], pad) for at in range(0, each, options.batch_size)
                ]
                # Every response token of the step weighs the same, however it fell into micro-batches.
                tokens = max(sum(batch.response_tokens for batch in batches), 1)
                loss = 0.0
                for batch in batches:
                    part = response_loss(model, batch, self.adapted.device) / tokens
                    part.backward()  # type: ignore[no-untyped-call, unused-ignore]
                    loss += part.item()
                torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                total += loss
                on_step(step + 1, loss)
                if not math.isfinite(loss):
                    break
        return Trained(self.adapted.factors(), total / options.steps)

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
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Tensors
from fedsrd.data.prompt import Encoded
from fedsrd.privacy.accounting import Spent
from fedsrd.training.batches import collate, draw, pack, packed_loss, response_loss
from fedsrd.training.models import AdaptedModel
from fedsrd.training.options import TrainingOptions

OnStep = Callable[[int, float], None]


def pad_id(adapted: AdaptedModel) -> int:
    """The token that fills up sequences: the tokenizer's, or its end-of-text token."""
    tokenizer = adapted.tokenizer
    found: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round of local training gives: the tensors after it, the mean loss a response token in nats (None: not
    told), and what the run has given away of its examples up to here (None: nothing is promised).
    """

    tensors: Tensors
    loss: float | None
    spent: Spent | None = None


class LocalTrainer:
    """One client's examples and how it trains on them; the model is lent by whoever runs it. `rounds` is how many the
    federation has, for a schedule.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        examples: Sequence[Encoded],
        options: TrainingOptions,
        client: str,
        seed: int,
        rounds: int = 1,
    ) -> None:
        if not examples:
            raise ValueError(f"client {client} has no examples")
        self.adapted = adapted
        self.examples = examples
        self.options = options
        self.client = client
        self.seed = seed
        self.rounds = rounds

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.examples)

    def set_rate(self, optimizer: torch.optim.Optimizer, round_number: int, step: int) -> None:
        """Gives an optimizer the learning rate of a step (from 0)."""
        for group in optimizer.param_groups:
            group["lr"] = self.options.rate(round_number, self.rounds, step)

    def examples_of(self, round_number: int, wanted: int) -> list[Encoded]:
        """The examples of one round, in order."""
        order = draw(self.count, wanted, (round_number - 1) * wanted, self.seed, self.client)
        return [self.examples[place] for place in order]

    def train(self, plan: LocalPlan, round_number: int, on_step: OnStep) -> Trained:
        """Trains by a plan for one round. The result follows from the arguments, the examples and the seed alone.

        A loss that is no longer finite ends the round early: the tensors come back as they are, and the caller must not
        send them.

        Args:
            plan: what trains, from where and how. The loss that is told is without its proximal term.
            round_number: from 1; decides which examples come.
            on_step: called after each optimizer step with its number (from 1) and loss.
        """
        options, model = self.options, self.adapted.model
        self.adapted.set_tensors(plan.start, plan.base_delta)
        named = self.adapted.parameters(plan.trained)
        parameters = list(named.values())
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        anchors = [parameter.detach().clone() for parameter in parameters] if plan.proximal else []
        each = options.batch_size * options.accumulation
        examples = self.examples_of(round_number, each * options.steps)
        pad = pad_id(self.adapted)
        total = 0.0
        model.train()
        devices = [self.adapted.device] if self.adapted.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(rng.integer(self.seed, "dropout", self.client, round_number))
            for step in range(options.steps):
                chosen = examples[step * each : (step + 1) * each]
                parts = [chosen[at : at + options.batch_size] for at in range(0, each, options.batch_size)]
                # Every response token of the step weighs the same, however it fell into micro-batches.
                tokens = max(sum(len(example.response) for example in chosen), 1)
                loss = 0.0
                for micro in parts:
                    part = self._loss(micro, pad) / tokens
                    part.backward()  # type: ignore[no-untyped-call, unused-ignore]
                    loss += part.item()
                if plan.gradient_hook is not None:
                    plan.gradient_hook({name: p.grad for name, p in named.items() if p.grad is not None})
                for parameter, anchor in zip(parameters, anchors, strict=False):
                    # The gradient of the proximal term, exactly.
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach() - anchor, alpha=plan.proximal)
                torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
                self.set_rate(optimizer, round_number, step)
                optimizer.step()
                optimizer.zero_grad()
                total += loss
                on_step(step + 1, loss)
                if not math.isfinite(loss):
                    break
        return Trained(self.adapted.tensors(), total / options.steps)

    def _loss(self, examples: Sequence[Encoded], pad: int) -> torch.Tensor:
        model, device = self.adapted.model, self.adapted.device
        if self.options.packing:
            return packed_loss(model, pack(examples), device)
        return response_loss(model, collate(examples, pad), device)


class PooledTrainer(LocalTrainer):
    """Everybody's data in one place: the very examples that the clients would see in a round, one of each in turn.

    Its options' steps are the clients' steps together, so that it sees as many examples, in as many batches.

    Args:
        trainers: the clients', at least one, with equal options.
        name: what the one client is called.
    """

    def __init__(self, trainers: Sequence[LocalTrainer], name: str) -> None:
        first = trainers[0]
        options = first.options.model_copy(update={"steps": first.options.steps * len(trainers)})
        together = [example for trainer in trainers for example in trainer.examples]
        super().__init__(first.adapted, together, options, name, first.seed, first.rounds)
        self.trainers = trainers

    def examples_of(self, round_number: int, wanted: int) -> list[Encoded]:
        """Each client's examples of the round, dealt in turn."""
        hands = [trainer.examples_of(round_number, wanted // len(self.trainers)) for trainer in self.trainers]
        return [example for dealt in zip(*hands, strict=True) for example in dealt]

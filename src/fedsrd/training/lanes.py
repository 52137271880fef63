"""Several clients of one round trained in one pass: they share the base model's forward, and each has its own adapter.

A small model on a GPU waits for its kernels' launches: four clients in one batch take about the time of one. Client
number l is lane l: its sequences are the l-th part of every batch, and each adapted layer computes

    W0 x + scale B_l A_l x,   with x as (lanes, batch x length, in) and two batched products.

Nothing passes between lanes. AdamW is elementwise, and gradients are clipped by each lane's own norm, so the result
is that of `sft.LocalTrainer.train` for each client, up to the order of sums.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from fedsrd import rng
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import Tensors
from fedsrd.data.prompt import Encoded
from fedsrd.training.batches import collate, response_losses
from fedsrd.training.sft import LocalTrainer, OnStep, Trained, pad_id


def can_train_together(trainers: Sequence[object], plans: Sequence[LocalPlan]) -> bool:
    """Whether `train_together` takes these: several plain trainers of one model with the same options, whose plans
    train the same tensors on the same base model. Packing and dropout (the adapter's, or the model's own) it has not:
    packing knows no lanes, and each client has drawn its own dropout.
    """
    first = trainers[0]
    if len(trainers) < 2 or type(first) is not LocalTrainer or first.options.packing or first.adapted.has_dropout:
        return False
    alike = (
        type(trainer) is LocalTrainer and trainer.adapted is first.adapted and _same(trainer, first)
        for trainer in trainers
    )
    whole = plans[0].start.keys() == set(first.adapted.names)
    return whole and all(alike) and all(_fits(plan, plans[0]) for plan in plans[1:])


def _same(trainer: LocalTrainer, first: LocalTrainer) -> bool:
    return trainer.options == first.options and trainer.rounds == first.rounds


def _fits(plan: LocalPlan, first: LocalPlan) -> bool:
    return (
        plan.trained == first.trained
        and _shapes(plan.start) == _shapes(first.start)
        and plan.base_delta.keys() == first.base_delta.keys()
        and all(torch.equal(plan.base_delta[name], first.base_delta[name]) for name in first.base_delta)
    )


def _shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def train_together(
    trainers: Sequence[LocalTrainer], plans: Sequence[LocalPlan], round_number: int, on_steps: Sequence[OnStep]
) -> list[Trained]:
    """Trains every client by its plan for one round, as `LocalTrainer.train` does one, and gives what that gives.

    A client whose loss is no longer finite has its tensors as they are then, and is told no more steps; the others
    train on.

    Args:
        trainers, plans: as `can_train_together` wants them.
        round_number: from 1.
        on_steps: each client's, called after each optimizer step with its number (from 1) and that client's loss.
    """
    first = trainers[0]
    options, adapted, lanes = first.options, first.adapted, len(trainers)
    adapted.set_tensors(plans[0].start, plans[0].base_delta)
    trained = _Trained([{name: plan.start[name] for name in plans[0].trained} for plan in plans], adapted.device)
    stacked = {
        name: trained.parameters[name] if name in trained.parameters else _stacked(plans, name, adapted.device)
        for name in adapted.names
    }
    optimizer = torch.optim.AdamW([trained.values], lr=options.learning_rate, weight_decay=options.weight_decay)
    proximal = torch.tensor([[plan.proximal] for plan in plans], device=adapted.device)
    anchor = trained.values.detach().clone() if any(plan.proximal for plan in plans) else None
    each = options.batch_size * options.accumulation
    examples = [trainer.examples_of(round_number, each * options.steps) for trainer in trainers]
    totals, at_end = [0.0] * lanes, dict[int, Tensor]()
    adapted.model.train()
    devices = [adapted.device] if adapted.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), adapted.in_lanes(stacked, lanes):
        torch.manual_seed(rng.integer(first.seed, "dropout", *(trainer.client for trainer in trainers), round_number))
        for step in range(options.steps):
            chosen = [own[step * each : (step + 1) * each] for own in examples]
            step_losses = _gradients(first, chosen, trained)
            for lane, plan in enumerate(plans):
                if plan.gradient_hook is not None and lane not in at_end:
                    plan.gradient_hook(trained.gradients_of(lane))
            if anchor is not None:
                # The gradient of the proximal term, exactly.
                trained.gradients.add_((trained.values.detach() - anchor) * proximal)
            clip(trained.gradients, options.max_grad_norm)
            first.set_rate(optimizer, round_number, step)
            optimizer.step()
            trained.gradients.zero_()
            # The only time in a step that the CPU waits for the device.
            losses: list[float] = step_losses.tolist()
            for lane in set(range(lanes)) - at_end.keys():
                totals[lane] += losses[lane]
                on_steps[lane](step + 1, losses[lane])
                if not math.isfinite(losses[lane]):
                    at_end[lane] = trained.values[lane].detach().clone()
            if len(at_end) == lanes:
                break
    found = []
    for lane, plan in enumerate(plans):
        after = trained.tensors(at_end.get(lane, trained.values[lane]))
        tensors = {name: after[name] if name in after else plan.start[name].float().clone() for name in adapted.names}
        found.append(Trained(tensors, totals[lane] / options.steps))
    return found


def clip(gradients: Tensor, most: float) -> None:
    """Scales each lane's gradients (lanes, size) down to the norm `most`, in place, as clip_grad_norm_ does one's."""
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    gradients.mul_((most / (norms + 1e-6)).clamp(max=1.0))


def _gradients(first: LocalTrainer, chosen: Sequence[Sequence[Encoded]], trained: "_Trained") -> Tensor:
    """Adds the gradients of one step, and gives each lane's mean loss a response token, (lanes,) float32.

    Args:
        first: any of the trainers, for model and options.
        chosen: each lane's examples of the step.
        trained: what the gradients are of.
    """
    adapted, size = first.adapted, first.options.batch_size
    # Every response token of a lane's step weighs the same, however it fell into micro-batches.
    counts = [max(sum(len(example.response) for example in own), 1) for own in chosen]
    tokens = torch.tensor(counts, dtype=torch.float32, device=adapted.device)
    total = torch.zeros_like(tokens)
    for at in range(0, len(chosen[0]), size):
        micro = list(chain.from_iterable(own[at : at + size] for own in chosen))
        losses = response_losses(adapted.model, collate(micro, pad_id(adapted)), adapted.device)
        losses = losses.view(len(chosen), size).sum(1) / tokens
        trained.add_gradients(losses.sum())
        total += losses.detach()
    return total


def _stacked(plans: Sequence[LocalPlan], name: str, device: torch.device) -> Tensor:
    return torch.stack([plan.start[name].float() for plan in plans]).to(device)


class _Trained:
    """All lanes' trained tensors in one: a step of the optimizer is a few large operations instead of hundreds.

    Attributes:
        values: (lanes, size) float32, a lane's tensors one behind the other.
        gradients: (lanes, size) float32, the gradient of `values`.
        parameters: by name, (lanes, *shape): views of `values` that the model computes with.
    """

    def __init__(self, starts: Sequence[Tensors], device: torch.device) -> None:
        self._shapes = _shapes(starts[0])
        rows = [torch.cat([tensor.float().flatten() for tensor in start.values()]) for start in starts]
        self.values = torch.nn.Parameter(torch.stack(rows).to(device))
        self.gradients = torch.zeros_like(self.values)
        self.values.grad = self.gradients
        self.parameters = {name: view.requires_grad_() for name, view in self._split(self.values.detach())}

    def add_gradients(self, loss: Tensor) -> None:
        """Adds those of a loss; a tensor that has no part in it has zeros."""
        parameters = list(self.parameters.values())
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        self.gradients.add_(torch.cat([gradient.flatten(1) for gradient in found], dim=1))

    def _split(self, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        for (name, shape), part in zip(self._shapes.items(), torch.split(values, sizes, dim=-1), strict=True):
            yield name, part.view(*part.shape[:-1], *shape)

    def gradients_of(self, lane: int) -> Mapping[str, Tensor]:
        """One lane's gradients by name, views."""
        return dict(self._split(self.gradients[lane]))

    def tensors(self, row: Tensor) -> dict[str, Tensor]:
        """A lane's tensors from its row of values: float32, on the CPU, each with memory of its own."""
        return {name: tensor.clone() for name, tensor in self._split(row.detach().cpu())}

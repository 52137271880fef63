"""The search behind docs/results.md's byte budgets: many small federations side by side on one GPU.

    python benchmarks/search.py [--store benchmarks/results] [--seconds 200] [--lanes 80] [--rounds 10]

All federations train in one pass (`AdaptedModel.in_lanes`), and what travels is rounded by tensors on the device, with
its bits as entropies of levels and 16 for a scale: a choice among hundreds, in minutes. What was chosen then runs for
real, with real payloads, by `fedsrd compare recipes/embedded/budgets.toml`. Which part of a cycle an element belongs to
is drawn by torch here, so single runs are not those of the engine; FedAvg's are, up to the order of sums.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from harness import machine
from torch import Tensor

from fedsrd.core.tensors import initial_tensors
from fedsrd.data.prompt import Encoded
from fedsrd.federation import setup
from fedsrd.federation.session import Assets, Session
from fedsrd.recipe import parse, read
from fedsrd.training.batches import collate, response_losses
from fedsrd.training.sft import LocalTrainer, pad_id

RECIPE = Path("embedded/main")
BLOCK = 3072
"""Elements under one scale: every tensor of the model has a multiple of these."""


@dataclass(frozen=True)
class Point:
    """One federation.

    Attributes:
        seed: of data order, start and cycle.
        rate: of the clients' AdamW.
        step: the server's learning rate.
        momentum: the server's, as FedAvgM.
        velocity: momentum that all sides apply alike (`methods.cyclic`).
        period, period_a: of the cycle, in rounds, for LoRA's B and A; 1 sends all.
        threshold: of ternary values both ways, in mean magnitudes; 0 for float32.
        trained: "BA", or "B" for FFA-LoRA.
        decay: of the clients' residual.
        feedback: at both ends.
    """

    seed: int = 0
    rate: float = 2e-3
    step: float = 1.0
    momentum: float = 0.0
    velocity: float = 0.0
    period: int = 1
    period_a: int = 1
    threshold: float = 0.0
    trained: str = "BA"
    decay: float = 1.0
    feedback: bool = True


def points() -> Iterator[Point]:
    """What was searched, two seeds each."""
    for seed in (0, 1):
        plain = partial(Point, seed, feedback=False)
        yield from (plain(rate=rate, step=step) for rate in (1e-3, 1.5e-3, 2e-3, 3e-3) for step in (1.0, 1.3))
        yield from (plain(momentum=m, rate=r, step=s) for m, r, s in ((0.3, 1.5e-3, 1), (0.5, 2e-3, 0.6)))
        yield from (plain(trained="B", rate=rate) for rate in (2e-3, 3e-3))
        for threshold in (0.7, 1.3, 1.6, 2.0):
            yield from (Point(seed, threshold=threshold, step=step) for step in (1.0, 1.3))
        for period, threshold in ((2, 0.7), (2, 1.3), (2, 1.6), (2, 2.0), (3, 0.7), (3, 1.3), (3, 1.6), (3, 2.0)):
            for step in (1.0, 1.3, 1.8):
                yield Point(seed, period=period, period_a=period, threshold=threshold, step=step)
        for period, longer, threshold in (
            (1, 4, 1.6),
            (1, 8, 1.6),
            (1, 16, 1.6),
            (1, 16, 2.3),
            (2, 4, 1.3),
            (2, 4, 2.0),
        ):
            for step in (1.0, 1.3):
                yield Point(seed, period=period, period_a=longer, threshold=threshold, step=step)
        for period, longer, threshold in (
            (2, 8, 0.7),
            (2, 8, 1.6),
            (2, 8, 2.0),
            (2, 16, 1.3),
            (3, 9, 2.0),
            (4, 12, 2.0),
        ):
            for step in (1.0, 1.3, 1.6):
                yield Point(seed, period=period, period_a=longer, threshold=threshold, step=step)
        yield Point(seed, rate=3e-3, period_a=16, threshold=1.6)
        for period, threshold in ((1, 1.6), (2, 1.3), (2, 1.6), (3, 0.7), (3, 1.3), (3, 2.0)):
            yield Point(seed, trained="B", period=period, period_a=period, threshold=threshold, step=1.3)
        for velocity, step in ((0.3, 0.9), (0.5, 0.6), (0.7, 0.4)):
            yield Point(seed, period=3, period_a=3, threshold=1.3, velocity=velocity, step=step)


class Bench:
    """Model, data and the layout of all tensors in one row."""

    def __init__(self, rounds: int) -> None:
        tree, _ = read(RECIPE, [])
        tree.pop("compare", None)
        recipe = parse(tree, str(RECIPE))
        self.rounds, self.options = rounds, recipe.training
        self.table, lora = setup.shapes(recipe, Quiet(), Assets())
        self.session = Session(recipe, lora, Quiet(), Assets())
        self.adapted = self.session.adapted
        self.device, self.pad = self.adapted.device, pad_id(self.adapted)
        self.names = self.adapted.names
        self.sizes = [math.prod(self.table.shapes[name]) for name in self.names]
        self.clients = list(self.session._train)
        self.is_a = torch.cat(
            [torch.full((size,), "lora_A" in name) for name, size in zip(self.names, self.sizes, strict=True)]
        ).to(self.device)
        self._trainers: dict[tuple[int, str], LocalTrainer] = {}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(lanes, size) as (lanes, *shape) by name: views."""
        parts = torch.split(flat, self.sizes, dim=-1)
        return {
            name: part.view(*part.shape[:-1], *self.table.shapes[name])
            for name, part in zip(self.names, parts, strict=True)
        }

    def start(self, seed: int) -> Tensor:
        """The common start, (size,)."""
        start = initial_tensors(self.table, seed)
        return torch.cat([start[name].flatten() for name in self.names]).to(self.device)

    def examples(self, seed: int, client: str, number: int) -> list[list[Encoded]]:
        """A client's examples of one round, by step."""
        key = seed, client
        if key not in self._trainers:
            examples = self.session._train[client]
            self._trainers[key] = LocalTrainer(self.adapted, examples, self.options, client, seed)
        each = self.options.batch_size * self.options.accumulation
        found = self._trainers[key].examples_of(number, each * self.options.steps)
        return [found[at : at + each] for at in range(0, len(found), each)]

    def losses(self, examples: Sequence[Encoded], lanes: int) -> Tensor:
        """Summed NLL by lane, (lanes,)."""
        return response_losses(self.adapted.model, collate(examples, self.pad), self.device).view(lanes, -1).sum(1)


class Quiet:
    """An observer that says nothing."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def activity(self, *given: Any) -> None: ...
    def round_done(self, record: Any) -> None: ...


class Federation:
    """Server and clients of one point: the state, and what both ends keep."""

    def __init__(self, bench: Bench, point: Point) -> None:
        self.bench, self.point = bench, point
        self.x = bench.start(point.seed)
        size = len(self.x)
        generator = torch.Generator(bench.device).manual_seed(point.seed + 77)
        self._place = torch.rand(size, device=bench.device, generator=generator)
        self._residual = torch.zeros(len(bench.clients), size, device=bench.device)
        self._lost, self._velocity = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.bits, self.kept = 0.0, list[float]()

    def _scheduled(self, number: int) -> Tensor:
        point = self.point
        own = (self._place * point.period).long() == number % point.period
        mask = torch.where(self.bench.is_a, (self._place * point.period_a).long() == number % point.period_a, own)
        return mask & ~self.bench.is_a if point.trained == "B" else mask

    def close(self, number: int, changes: Tensor) -> None:
        """One round's aggregation of (clients, size) changes."""
        point, mask = self.point, self._scheduled(number)
        wanted = self._residual * point.decay + changes
        sent, up = ternary(wanted, mask, point.threshold)
        scheduled = (wanted * mask).square().sum()
        self.kept.append(1.0 - float((wanted * mask - sent).square().sum() / scheduled.clamp(min=1e-30)))
        step = sent.mean(0) * point.step
        if point.feedback:
            self._residual = wanted - sent
            step = step + self._lost * mask
        if point.momentum:
            self._velocity = step = self._velocity * point.momentum + step
        made, down = ternary(step.unsqueeze(0), mask, point.threshold)
        if point.feedback:
            self._lost = torch.where(mask, step - made[0], self._lost)
        if point.velocity:
            self._velocity = self._velocity * point.velocity + made[0]
        self.x = self.x + (self._velocity if point.velocity else made[0])
        self.bits += (up + down) / self.bench.rounds


def ternary(wanted: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, float]:
    """What arrives of the masked elements of (rows, size), and its bits an element of all: entropy and scales."""
    share = float(mask.float().mean())
    if not threshold:
        return wanted * mask, 32.0 * share
    sizes = (wanted.abs() * mask).view(len(wanted), -1, BLOCK)
    count = mask.view(-1, BLOCK).sum(1).clamp(min=1)
    kept = sizes >= (sizes.sum(2) / count * threshold).clamp(min=1e-30).unsqueeze(2)
    scale = (sizes * kept).sum(2) / kept.sum(2).clamp(min=1)
    nonzero = float(kept.float().mean()) / share
    zeros = 1.0 - nonzero
    entropy = nonzero - sum(p * math.log2(p) for p in (nonzero, zeros) if p > 0)
    found = (kept * scale.unsqueeze(2)).view_as(wanted) * torch.sign(wanted)
    return found, share * entropy + 16.0 / BLOCK


def rounds(bench: Bench, federations: Sequence[Federation]) -> None:
    """All rounds of some federations, in one pass a step."""
    clients = len(bench.clients)
    lanes = len(federations) * clients
    own = [federation for federation in federations for _ in range(clients)]
    rate = torch.tensor([[federation.point.rate] for federation in own], device=bench.device)
    frozen = torch.stack([bench.is_a & (federation.point.trained == "B") for federation in own])
    bench.adapted.model.train()
    for number in range(1, bench.rounds + 1):
        before = torch.stack([federation.x for federation in own])
        after, first, second = before.clone(), torch.zeros_like(before), torch.zeros_like(before)
        parameters = {name: view.detach().requires_grad_() for name, view in bench.split(after).items()}
        steps = [
            bench.examples(federation.point.seed, client, number)
            for federation in federations
            for client in bench.clients
        ]
        with bench.adapted.in_lanes(parameters, lanes):
            for step in range(bench.options.steps):
                chosen = [examples[step] for examples in steps]
                tokens = torch.tensor([float(sum(len(e.response) for e in examples)) for examples in chosen])
                loss = bench.losses(list(chain.from_iterable(chosen)), lanes) / tokens.to(bench.device)
                found = torch.autograd.grad(loss.sum(), list(parameters.values()), materialize_grads=True)
                gradient = torch.cat([part.flatten(1) for part in found], 1).masked_fill_(frozen, 0.0)
                norm = gradient.norm(dim=1, keepdim=True)
                gradient *= (bench.options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                root = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                after.sub_((first / (1 - 0.9 ** (step + 1)) / root * rate).masked_fill_(frozen, 0.0))
        changes = after.sub_(before)
        for place, federation in enumerate(federations):
            federation.close(number, changes[place * clients : (place + 1) * clients])


def quality(bench: Bench, federations: Sequence[Federation]) -> list[dict[str, float]]:
    """Response NLL of every set, by federation."""
    lanes = len(federations)
    stacked = bench.split(torch.stack([federation.x for federation in federations]))
    found: list[dict[str, float]] = [{} for _ in federations]
    bench.adapted.model.eval()
    with torch.inference_mode(), bench.adapted.in_lanes(stacked, lanes):
        for name, examples in bench.session._tests.items():
            ordered = sorted(examples, key=lambda e: len(e.prompt) + len(e.response))
            total = torch.zeros(lanes, device=bench.device)
            for at in range(0, len(ordered), 8):
                total += bench.losses(ordered[at : at + 8] * lanes, lanes)
            tokens = sum(len(example.response) for example in ordered)
            for row, value in zip(found, (total / tokens).tolist(), strict=True):
                row[name] = value
    return found


def main() -> None:
    """Runs all points, as many as there is time for, and stores them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--lanes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--points", type=int, help="only so many")
    given = parser.parse_args()
    began, bench = time.perf_counter(), Bench(given.rounds)
    chosen = list(points())[: given.points]
    side = max(given.lanes // len(bench.clients), 1)
    inside = [entry.name for entry in bench.session.recipe.evaluation.sets if entry.in_domain]
    rows = []
    for at in range(0, len(chosen), side):
        if time.perf_counter() - began > given.seconds:
            break
        federations = [Federation(bench, point) for point in chosen[at : at + side]]
        rounds(bench, federations)
        for federation, sets in zip(federations, quality(bench, federations), strict=True):
            outside = [value for name, value in sets.items() if name not in inside]
            row = {
                **asdict(federation.point),
                "in domain": sum(sets[name] for name in inside) / len(inside),
                "out of domain": sum(outside) / len(outside),
                "bits": federation.bits,
                "energy kept": sum(federation.kept) / len(federation.kept),
            }
            rows.append(row)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(f"{len(rows)} of {len(chosen)} after {time.perf_counter() - began:.0f} s", flush=True)
    if given.store:
        command = f"python benchmarks/search.py --store {given.store} --lanes {given.lanes} --rounds {given.rounds}"
        text = json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1)
        (given.store / "embedded-search.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

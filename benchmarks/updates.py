"""What real updates look like: tails, agreement of clients, what ternary values keep, and whether a rotation helps.

    python benchmarks/updates.py [--store benchmarks/results] [--rounds 6]

FedAvg on the embedded main set-up (rate 2e-3, seed 0); three minutes on two cores. Energy is the sum of squares. The
rotation is EDEN's (Vargaftik et al., arXiv 2108.08842): random signs and a Hadamard transform, of 1024 elements each.
"""

import argparse
import math
from pathlib import Path

import torch
from harness import Result, show
from search import BLOCK, Bench, Federation, Point, rounds, ternary
from torch import Tensor

THRESHOLDS = (0.7, 1.6, 2.0)


class Watched(Federation):
    """A federation whose updates are measured before they are averaged."""

    def __init__(self, bench: Bench, point: Point) -> None:
        super().__init__(bench, point)
        self.rows: list[list[object]] = []

    def close(self, number: int, changes: Tensor) -> None:
        """Measures, then closes."""
        through = dict(zip("BA", self._through(changes[0]), strict=True))
        for factor, mask in (("B", ~self.bench.is_a), ("A", self.bench.is_a)):
            own = changes[0][mask]
            own = own[: len(own) // BLOCK * BLOCK]
            each = changes[:, mask].square().sum(1).mean()
            agreement = float(changes[:, mask].mean(0).square().sum() / each)
            kept = [_kept(vector, threshold) for threshold in THRESHOLDS for vector in (own, rotated(own))]
            share = through[factor] / sum(through.values())
            self.rows.append([number, factor, share, agreement, kurtosis(own), *kept])
        super().close(number, changes)

    def _through(self, change: Tensor) -> tuple[float, float]:
        """Energy of the full weight's change that comes of dB A, and of B' dA."""
        held, moved = self.bench.split(self.x), self.bench.split(change)
        by_b = by_a = 0.0
        for name in (name for name in self.bench.names if "lora_B" in name):
            other = name.replace("lora_B", "lora_A")
            by_b += float((moved[name] @ held[other]).square().sum())
            by_a += float(((held[name] + moved[name]) @ moved[other]).square().sum())
        return by_b, by_a


def kurtosis(vector: Tensor) -> float:
    """3 for a normal distribution, 1.8 for a uniform one, 1 for two values."""
    centred = vector - vector.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def rotated(vector: Tensor) -> Tensor:
    """Random signs, then a Hadamard transform, of every 1024 elements."""
    size, half = 1024, 1
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(1)) * 2 - 1
    rows = vector.view(-1, size) * signs
    while half < size:
        rows = rows.view(-1, size // (2 * half), 2, half)
        rows = torch.stack([rows[:, :, 0] + rows[:, :, 1], rows[:, :, 0] - rows[:, :, 1]], 2).view(-1, size)
        half *= 2
    return (rows / math.sqrt(size)).view(-1)


def _kept(vector: Tensor, threshold: float) -> str:
    """Share of the energy that ternary values keep, and their bits an element."""
    sent, bits = ternary(vector.unsqueeze(0), torch.ones(len(vector), dtype=torch.bool), threshold)
    return f"{1 - float((vector - sent[0]).square().sum() / vector.square().sum()):.2f} @ {bits:.2f}"


def main() -> None:
    """Runs the rounds and shows the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    bench = Bench(given.rounds)
    watched = Watched(bench, Point(feedback=False))
    rounds(bench, [watched])
    columns = ["round", "factor", "share of dW", "|mean|^2 / mean|.|^2", "kurtosis"]
    columns += [f"t {threshold}{how}" for threshold in THRESHOLDS for how in ("", ", rotated")]
    result = Result(
        "Updates of one client of four: energy that ternary values keep @ bits an element",
        columns,
        notes=["FedAvg, embedded main, rate 2e-3, seed 0, client `code`; of four unrelated updates the mean has 0.25"],
    )
    result.rows.extend(watched.rows)
    show("updates", result, f"python benchmarks/updates.py --rounds {given.rounds}", given.store)


if __name__ == "__main__":
    main()

"""What a privacy budget allows, before anything is trained: the noise that an epsilon asks for."""

from dataclasses import asdict, dataclass
from typing import Any

from fedsrd.privacy.accounting import noise_multiplier

USUAL = (1.0, 3.0, 8.0)
"""Epsilons that are shown beside the one that was asked for."""


@dataclass(frozen=True)
class Budget:
    """What is planned for, at one client.

    Attributes:
        examples: that it has.
        batch: that a step takes on average.
        steps: of a round.
        rounds: of the run; fewer where not all clients take part in all.
        delta: chance beyond epsilon.
        epsilon: asked for; None: the usual ones alone.
    """

    examples: int
    batch: int
    steps: int
    rounds: int
    delta: float
    epsilon: float | None = None


def noise(budget: Budget) -> dict[str, Any]:
    """The noise by epsilon: its multiplier, and its standard deviation in an element of a step's mean gradient, in
    clips.

    Raises:
        PrivacyError: an epsilon cannot be had.
    """
    rate = min(1.0, budget.batch / budget.examples)
    wanted = sorted({*USUAL, *([] if budget.epsilon is None else [budget.epsilon])})
    rows = []
    for epsilon in wanted:
        found = noise_multiplier(epsilon, budget.delta, rate, budget.steps * budget.rounds)
        deviation = found / (rate * budget.examples)
        rows.append({"epsilon": epsilon, "noise_multiplier": found, "deviation_in_clips": round(deviation, 6)})
    return {**asdict(budget), "sampling_rate": rate, "passes": rate * budget.steps * budget.rounds, "noise": rows}

"""Response NLL: the mean negative log-likelihood of a response token, in nats, given prompt and earlier response.

It is the metric that separates methods on a 135M model, where multiple choice is near chance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fedsrd.data.prompt import Encoded
from fedsrd.training.batches import collate, response_losses


class Lent(Protocol):
    """A causal language model as it is evaluated: its network, tokenizer and device."""

    model: Any
    tokenizer: Any
    device: torch.device


@dataclass(frozen=True)
class Likelihood:
    """A response NLL.

    Attributes:
        mean: nats a token, over all response tokens.
        stderr: its standard error, examples being the units (tokens of one are not independent); None of one example.
    """

    mean: float
    stderr: float | None


def likelihood(rows: Sequence[tuple[float, int]]) -> Likelihood:
    """Of `by_example`'s rows. The error is that of a ratio of sums, by its linear part."""
    tokens = max(sum(count for _, count in rows), 1)
    mean = sum(loss for loss, _ in rows) / tokens
    if len(rows) < 2:
        return Likelihood(mean, None)
    spread = sum((loss - mean * count) ** 2 for loss, count in rows)
    return Likelihood(mean, math.sqrt(spread * len(rows) / (len(rows) - 1)) / tokens)


def by_example(lent: Lent, examples: Sequence[Encoded], batch_size: int) -> list[tuple[float, int]]:
    """Each example's summed NLL in nats and its number of response tokens, in the order given."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt) + len(examples[i].response), i))
    found = [(0.0, 0)] * len(examples)
    lent.model.eval()
    with torch.inference_mode():
        for at in range(0, len(order), batch_size):
            places = order[at : at + batch_size]
            batch = collate([examples[place] for place in places], pad_id=lent.tokenizer.eos_token_id or 0)
            losses = response_losses(lent.model, batch, lent.device).tolist()
            for place, loss in zip(places, losses, strict=True):
                found[place] = (loss, len(examples[place].response))
    return found


def evaluate(
    adapted: Lent,
    sets: Mapping[str, Sequence[Encoded]],
    batch_size: int,
    on_set: Callable[[str], None] = lambda _: None,
) -> dict[str, Likelihood]:
    """Response NLL of every set, by name."""
    found = {}
    for name, examples in sets.items():
        on_set(name)
        found[name] = likelihood(by_example(adapted, examples, batch_size))
    return found

"""Response NLL: the mean negative log-likelihood of a response token, in nats, given prompt and earlier response.

It is the metric that separates methods on a 135M model, where multiple choice is near chance.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fedsrd.data.prompt import Encoded
from fedsrd.training.batches import collate, response_loss, response_losses


class Lent(Protocol):
    """A causal language model as it is evaluated: its network, tokenizer and device."""

    model: Any
    tokenizer: Any
    device: torch.device


def response_nll(adapted: Lent, examples: Sequence[Encoded], batch_size: int) -> float:
    """Mean NLL of all response tokens of the examples, in nats, for the adapter as it is set.

    Args:
        adapted: the model; it is left in evaluation mode.
        examples: at least one.
        batch_size: sequences a batch; batches are made of similar lengths, to spare padding.
    """
    ordered = sorted(examples, key=lambda e: (len(e.prompt) + len(e.response), e.prompt, e.response))
    total, tokens = 0.0, 0
    adapted.model.eval()
    with torch.inference_mode():
        for at in range(0, len(ordered), batch_size):
            batch = collate(ordered[at : at + batch_size], pad_id=adapted.tokenizer.eos_token_id or 0)
            total += response_loss(adapted.model, batch, adapted.device).item()
            tokens += batch.response_tokens
    return total / max(tokens, 1)


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
) -> dict[str, float]:
    """Response NLL of every set, by name."""
    found = {}
    for name, examples in sets.items():
        on_set(name)
        found[name] = response_nll(adapted, examples, batch_size)
    return found

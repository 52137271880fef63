"""Multiple choice by likelihood: the answer is the option that the model finds likeliest as its response."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsrd.evaluation.nll import Lent
from fedsrd.training.batches import padded


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its options, as token ids.

    Attributes:
        prompt: what stands before the response.
        options: each option as a response, without an end.
        sizes: length of each option's text, in characters.
        right: place of the right one.
    """

    prompt: list[int]
    options: tuple[list[int], ...]
    sizes: tuple[int, ...]
    right: int


def answered(lent: Lent, questions: Sequence[Question], batch_size: int) -> tuple[list[bool], list[bool]]:
    """Whether each question was answered rightly: by the sum of log-likelihoods (lm-eval's acc), and by their mean a
    character (acc_norm).

    Args:
        lent: the model; it is left in evaluation mode.
        questions: at least one.
        batch_size: questions a batch.
    """
    whole, each = [False] * len(questions), [False] * len(questions)
    order = sorted(range(len(questions)), key=lambda place: (len(questions[place].prompt), place))
    lent.model.eval()
    with torch.inference_mode():
        for at in range(0, len(order), batch_size):
            places = order[at : at + batch_size]
            found = iter(_losses(lent, [questions[place] for place in places]))
            for place in places:
                question = questions[place]
                losses = [next(found) for _ in question.options]
                shares = [loss / max(size, 1) for loss, size in zip(losses, question.sizes, strict=True)]
                whole[place] = losses.index(min(losses)) == question.right
                each[place] = shares.index(min(shares)) == question.right
    return whole, each


def _losses(lent: Lent, questions: Sequence[Question]) -> list[float]:
    """The summed NLL of every option of every question, in nats.

    A question is read once, and its keys and values serve all its options: a quarter of the work for four of them.
    """
    prompts, seen = padded([question.prompt for question in questions], 0)
    rows = [row for row, question in enumerate(questions) for _ in question.options]
    options, mask = padded([option for question in questions for option in question.options], 0, left=False)
    device = lent.device
    first = lent.model(
        input_ids=prompts.to(device),
        attention_mask=seen.to(device),
        position_ids=(seen.cumsum(1) - 1).clamp(min=0).to(device),
        logits_to_keep=1,
        use_cache=True,
    )
    cache = first.past_key_values
    cache.batch_select_indices(torch.tensor(rows, device=device))
    before = seen[rows]
    then = lent.model(
        input_ids=options.to(device),
        attention_mask=torch.cat([before, mask], 1).to(device),
        position_ids=(before.sum(1, keepdim=True) + torch.arange(options.shape[1])).to(device),
        past_key_values=cache,
        use_cache=True,
    )
    # The first token follows from the prompt's last position, the others from the one before.
    logits = torch.cat([first.logits[:, -1:][rows], then.logits[:, :-1]], 1).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), options.to(device).flatten(), reduction="none")
    found: list[float] = (losses.view(mask.shape) * mask.to(device)).sum(1).tolist()
    return found

"""Answers that are generated, and exact match on them: the numbers after "Answer:", else the last ones."""

import contextlib
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from fedsrd.evaluation.nll import Lent
from fedsrd.training.batches import padded

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_ANSWER = re.compile(r"answer\s*(?:is)?\s*[:=]?\s*", re.IGNORECASE)


def generate(
    lent: Lent, prompts: Sequence[Sequence[int]], most: int, batch_size: int, temperature: float = 0.0
) -> list[str]:
    """Each prompt's continuation, as text.

    Args:
        lent: the model; it is left in evaluation mode.
        prompts: token ids.
        most: new tokens.
        batch_size: sequences a batch.
        temperature: 0 for the likeliest token each time; else tokens are drawn, from torch's own generator.
    """
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0}
    tokenizer = lent.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    found = [""] * len(prompts)
    lent.model.eval()
    for at in range(0, len(order), batch_size):
        places = order[at : at + batch_size]
        ids, mask = padded([prompts[place] for place in places], pad)
        with torch.inference_mode():
            out = lent.model.generate(
                input_ids=ids.to(lent.device),
                attention_mask=mask.to(lent.device),
                max_new_tokens=most,
                pad_token_id=pad,
                **how,
            )
        for row, place in enumerate(places):
            found[place] = tokenizer.decode(out[row, ids.shape[1] :], skip_special_tokens=True)
    return found


def matches(answer: str, wanted: str) -> bool:
    r"""Whether an answer's numbers are those of the worked answer: those after "Answer:", else as many at its end.

    >>> matches("2 + 3 = 5\nAnswer: 5", "2 + 3 makes 5.\nAnswer: 5.0")
    True
    >>> matches("x is 8 and y is 40", "Answer: x = 8, y = 40")
    True
    >>> matches("that is 3/4", "Answer: 0.75"), matches("Answer: 1,250", "Answer: 1251"), matches("none", "Answer: 2")
    (True, False, False)
    """
    right = _numbers(wanted)
    found = _numbers(answer)
    return bool(right) and found[-len(right) :] == right


def _numbers(text: str) -> list[Fraction]:
    marks = list(_ANSWER.finditer(text))
    found = _NUMBER.findall(text, marks[-1].end()) if marks else []
    numbers = []
    for number in found or _NUMBER.findall(text):
        with contextlib.suppress(ValueError, ZeroDivisionError):
            numbers.append(Fraction(number.replace(",", "")))
    return numbers

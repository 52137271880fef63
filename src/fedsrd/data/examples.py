"""One supervised example, and how a set is split into train and test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsrd import rng

Split = Literal["train", "test"]

TELLING = 20
"""A response of more characters than this must not stand in both parts, whatever its instruction; shorter ones ("42")
may."""


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction and the response to learn.

    Attributes:
        instruction: what the model is asked.
        response: what it should answer.
        group: the unit that must not straddle train and test (a module, a product, a template); "" for none.
        turns: of a conversation, everything before the response as pairs of role ("system", "user", "assistant",
            "tool") and text, for the model's chat template; `instruction` is the same as one text. Empty where the
            instruction is a user's one turn.
        tools: that the model may call, as the chat template takes them.
    """

    instruction: str
    response: str
    group: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    tools: tuple[Any, ...] = ()


def split_examples(examples: Sequence[Example], test_fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Deduplicates and splits into (train, test), by group and disjoint by content.

    Whole groups go to one part, chosen by the seed and the group's name alone, so the split does not depend on the
    order of the input. Then every test example goes whose instruction, or telling response, occurs in train. Both
    parts come in an order that follows from the content, shuffled alike everywhere.

    Args:
        examples: any examples; those without a group are a group each.
        test_fraction: about which share of the groups is held out, in (0, 1).
        seed: of the split.
    """
    # Of repeats one stays, whatever the order of the input: that of the lowest key, and the last group by name.
    ordered = sorted(sorted(examples, key=lambda e: e.group), key=_key, reverse=True)
    unique = {normalised(f"{e.instruction}\n{e.response}"): e for e in ordered}
    train: list[Example] = []
    test: list[Example] = []
    for example in sorted(unique.values(), key=_key):
        group = example.group or _key(example)
        held_out = bool(rng.keep_mask(1, test_fraction, seed, "held out", group)[0])
        (test if held_out else train).append(example)
    instructions = {normalised(example.instruction) for example in train}
    responses = {normalised(example.response) for example in train}
    disjoint = [
        example
        for example in test
        if normalised(example.instruction) not in instructions
        and not (len(example.response) > TELLING and normalised(example.response) in responses)
    ]
    return train, disjoint


def normalised(text: str) -> str:
    """The text without differences of case and white space, to find repeats."""
    return " ".join(text.lower().split())


def _key(example: Example) -> str:
    return hashlib.sha256(f"{example.instruction}\x00{example.response}".encode()).hexdigest()

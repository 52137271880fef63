"""What a recipe's data comes to before anybody trains on it: counts, repeats, lengths in tokens. Figures, no contents,
but for the one example that is asked for.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from fedsrd import rng
from fedsrd.data.examples import Example, normalised
from fedsrd.data.prompt import Encoded, Style, encode

WHOLE = 1 << 22
"""Tokens within which nobody's example is cut."""
Fingerprints = Counter[bytes]


@dataclass(frozen=True)
class Lengths:
    """Lengths of examples in tokens, prompt and response together, before anything is cut.

    Attributes:
        measured: examples that were made into tokens.
        median: of them.
        high: 95 % are no longer.
        longest: the longest.
        mean: of what is trained on, after the cut.
        trained: mean number of tokens that the loss counts.
        prompts_cut: examples whose prompt is cut.
        responses_cut: examples whose response is cut, so that the model does not learn where it ends.
    """

    measured: int
    median: int
    high: int
    longest: int
    mean: float
    trained: float
    prompts_cut: int
    responses_cut: int


@dataclass(frozen=True)
class Part:
    """A stretch of one rendered example.

    Attributes:
        text: as the tokenizer writes it back, special tokens too.
        trained: whether the loss counts its tokens.
        tokens: how many there are.
    """

    text: str
    trained: bool
    tokens: int


def marked(encoded: Encoded) -> tuple[list[int], list[bool]]:
    """The token ids of an example, and of each whether the loss counts it."""
    return [*encoded.prompt, *encoded.response], [False] * len(encoded.prompt) + [True] * len(encoded.response)


def sample(examples: Sequence[Example], most: int, seed: int, *names: str) -> list[Example]:
    """At most so many examples: all, or a random choice that follows from the seed and the names, in order."""
    if len(examples) <= most:
        return list(examples)
    chosen = rng.generator(seed, "examples to measure", *names).choice(len(examples), most, replace=False)
    return [examples[place] for place in sorted(chosen.tolist())]


def lengths(examples: Sequence[Example], style: Style, tokenizer: Any, max_length: int) -> Lengths:
    """Lengths of examples, at least one. Raises DataError as `encode`."""
    before, after, counted = [], [], []
    prompts = responses = 0
    for example in examples:
        ids, trained = marked(encode(example, style, tokenizer, WHOLE))
        before.append(len(ids))
        if len(ids) > max_length:
            cut, kept = marked(encode(example, style, tokenizer, max_length))
            responses += sum(kept) < sum(trained)
            prompts += len(kept) - sum(kept) < len(trained) - sum(trained)
            ids, trained = cut, kept
        after.append(len(ids))
        counted.append(sum(trained))
    ordered = np.sort(np.asarray(before))
    return Lengths(
        len(before),
        int(ordered[(len(ordered) - 1) // 2]),
        int(ordered[int(0.95 * (len(ordered) - 1))]),
        int(ordered[-1]),
        float(np.mean(after)),
        float(np.mean(counted)),
        prompts,
        responses,
    )


def rendered(example: Example, style: Style, tokenizer: Any, max_length: int) -> list[Part]:
    """One example as the model is shown it, stretch by stretch. Raises DataError as `encode`."""
    ids, trained = marked(encode(example, style, tokenizer, max_length))
    parts = []
    for counts, group in groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1]):
        stretch = [number for number, _ in group]
        text = tokenizer.decode(stretch, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        parts.append(Part(str(text), counts, len(stretch)))
    return parts


def fingerprints(examples: Sequence[Example]) -> Fingerprints:
    """How often each example is there, whatever its case and white space."""
    return Counter(
        hashlib.blake2b(normalised(f"{e.instruction}\n{e.response}").encode(), digest_size=16).digest()
        for e in examples
    )


def repeats(found: Fingerprints) -> int:
    """Examples that are there already."""
    return sum(found.values()) - len(found)


def shared(of: str, everybody: Mapping[str, Fingerprints]) -> dict[str, int]:
    """How many of one set's examples each other set has too, where it is any."""
    own = everybody[of]
    counts = {
        name: sum(count for key, count in own.items() if key in other)
        for name, other in everybody.items()
        if name != of
    }
    return {name: count for name, count in counts.items() if count}

"""What the fuzzing programs share: `make fuzz` runs each `fuzz_*.py`.

    python tests/fuzz/fuzz_NAME.py [libFuzzer options] tests/fuzz/corpus/NAME
    python tests/fuzz/fuzz_NAME.py --write-corpus

libFuzzer watches time and memory (-timeout, -rss_limit_mb); what may come out of an input, the programs check.
"""

import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

NASTY = (
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, 1 << 32, 1 << 63, 10**30, -(10**30), 1e308, -1e308, 1e-320,
    "", "x", "0" * 16, "a" * 64, "\0", "\u202e", "[/x]", "../../x", "/", "~", "{x.__class__}", "float32", "ternary",
    "fedavg", "flora", "fedsrd", "embedded:stdlib", "x" * 5000, [], [[]], {}, {"name": "flora"}, [1, 2], ["a"],
)  # fmt: skip
"""What stands where something else was meant."""


def mutated(tree: Any, seed: int) -> Any:
    """The tree with one place of it replaced, deleted or doubled, at random."""
    draw = random.Random(seed)
    places = list(_places(tree))
    if not places:
        return draw.choice(NASTY)
    node, key = draw.choice(places)
    how = draw.random()
    if how < 0.7:
        node[key] = draw.choice(NASTY)
    elif how < 0.8:
        del node[key]
    elif how < 0.9 and isinstance(node, dict):
        node[draw.choice(("name", "id", "size", "extra", "seed", "source"))] = node[key]
    elif isinstance(node, list):
        node.extend([node[key]] * draw.choice((1, 3, 1000)))
    else:
        node[key] = [node[key]] * 3
    return tree


def _places(tree: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)


def run(
    name: str,
    one_input: Callable[[bytes], None],
    seeds: Callable[[], Iterable[tuple[str, bytes]]],
    mutate: Callable[[bytes, int, int], bytes] | None = None,
) -> None:
    """The program: fuzzes, or writes its corpus.

    Args:
        name: of its corpus.
        one_input: what libFuzzer calls.
        seeds: names and contents of the corpus.
        mutate: gives the next input of an input, the largest size and a seed; None for libFuzzer's own.
    """
    if sys.argv[1:] == ["--write-corpus"]:
        corpus = Path(__file__).parent / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        for title, content in seeds():
            (corpus / title).write_bytes(content)
        return
    options = {} if mutate is None else {"custom_mutator": mutate}
    atheris.Setup(sys.argv, one_input, **options)
    atheris.Fuzz()

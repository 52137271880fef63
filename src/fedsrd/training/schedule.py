"""Learning-rate schedules: of a federation's rounds, and of the steps within one."""

import math
from typing import Literal

Kind = Literal["constant", "linear", "cosine"]


def factor(kind: Kind, place: int, total: int, *, warmup: int = 0, final: float = 0.0) -> float:
    """What the rate is multiplied by, in (0, 1].

    After the warm-up, the curves are those of transformers' schedulers, from 1 towards `final`; in it the rate rises by
    equal parts, and the first one is no zero, since a round at rate zero would cost bytes for nothing.

    Args:
        kind: how the rate falls.
        place: of the round or step, from 0.
        total: of rounds or steps; not used by "constant".
        warmup: rounds or steps at the beginning.
        final: share of the rate that the curve falls towards.

    >>> [round(factor("linear", place, 4), 2) for place in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> [round(factor("constant", place, 4, warmup=2), 2) for place in range(4)]
    [0.33, 0.67, 1.0, 1.0]
    """
    if place < warmup:
        return (place + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    gone = min((place - warmup) / max(total - warmup, 1), 1.0)
    left = 1 - gone if kind == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return final + (1 - final) * left

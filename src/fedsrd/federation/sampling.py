"""Who takes part in a round."""

from collections.abc import Sequence

from fedsrd import rng


def share(count: int, fraction: float, minimum: int) -> int:
    """How many of `count` clients are asked: the share `fraction`, but at least `minimum`, or all.

    >>> share(16, 0.25, 1), share(3, 0.1, 2), share(1, 0.5, 4)
    (4, 2, 1)
    """
    return min(max(round(fraction * count), minimum, 1), count)


def choose(names: Sequence[str], wanted: int, seed: int, *purpose: int) -> list[str]:
    """A random choice of `wanted` clients (all, where there are no more), in the order of `names`.

    Follows from the arguments alone, so that a run that resumes, or is repeated by another engine, asks the same ones.

    Args:
        names: who can be asked.
        wanted: how many.
        seed: the run's.
        purpose: the round, and more where it is asked again.

    >>> choose(["a", "b", "c", "d"], 2, 0, 1) == choose(["a", "b", "c", "d"], 2, 0, 1)
    True
    """
    if wanted >= len(names):
        return list(names)
    order = rng.generator(seed, "participants", *purpose).permutation(len(names))
    chosen = set(order[: max(wanted, 0)].tolist())
    return [name for place, name in enumerate(names) if place in chosen]

"""Who takes part in a round."""

from collections.abc import Sequence

from fedsrd import rng


def sample(names: Sequence[str], fraction: float, minimum: int, seed: int, round_number: int) -> list[str]:
    """A random choice of clients, in the order of `names`: the share `fraction`, but at least `minimum`.

    Follows from the arguments alone, so that a run that resumes, or is repeated by another engine, asks the same ones.

    >>> sample(["a", "b", "c", "d"], 0.5, 1, seed=0, round_number=1) == sample(["a", "b", "c", "d"], 0.5, 1, 0, 1)
    True
    """
    wanted = min(max(round(fraction * len(names)), minimum, 1), len(names))
    if wanted == len(names):
        return list(names)
    order = rng.generator(seed, "participants", round_number).permutation(len(names))
    chosen = set(order[:wanted].tolist())
    return [name for place, name in enumerate(names) if place in chosen]

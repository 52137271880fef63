"""The nearest known name, for messages about one that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str], form: str = " Did you mean {!r}?", cutoff: float = 0.6) -> str:
    """A hint at the known name that is most like the given one.

    Args:
        given: what nobody knows.
        known: what there is.
        form: of the hint; the name takes the place of the braces.
        cutoff: how alike they must be, from 0 (anything) to 1 (equal).

    Returns:
        The hint, or "" where nothing is alike.

    >>> did_you_mean("fedsdr", ["fedavg", "fedsrd"])
    " Did you mean 'fedsrd'?"
    >>> did_you_mean("zzz", ["fedavg", "fedsrd"])
    ''
    """
    near = difflib.get_close_matches(given[:100], list(known), n=1, cutoff=cutoff)
    return form.format(near[0]) if near else ""

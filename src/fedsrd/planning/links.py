"""Link speeds as people write them."""

import re

from fedsrd.errors import RecipeError
from fedsrd.text import foreign

FASTEST = 1e15
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SPEED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(bit|bps|b)(?:/s)?\s*", re.IGNORECASE)


def bits_per_second(text: str, option: str) -> float:
    """The speed of a link.

    Raises:
        RecipeError: the text is none; the message names `option`.

    >>> bits_per_second("10Mbit", "--up"), bits_per_second("1.5 MB/s", "--up")
    (10000000.0, 12000000.0)
    """
    found = _SPEED.fullmatch(text)
    bits = float(found[1]) * _UNITS[found[2].lower()] * (8 if found[3] == "B" else 1) if found else 0.0
    if not 1 <= bits <= FASTEST:
        raise RecipeError(f"{option} {foreign(text)!r}: expected a speed such as 10Mbit, 1.5Gbit or 2MB/s")
    return bits


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(0.8), duration(75), duration(7300), duration(200_000)
    ('0.8 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"

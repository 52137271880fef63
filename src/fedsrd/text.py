"""Text from others is data: what a client, a server, a file or a library says goes through here before it is shown,
logged or kept.
"""

import re
import unicodedata

LIMIT = 300
"""Characters of another's text that are kept: a reason, not a file."""
MARK = "\N{REPLACEMENT CHARACTER}"
"""Stands for a character that would do something to a terminal instead of being shown there."""

# Control (C0, DEL, C1), format (bidirectional overrides, zero-width and tag characters), half a surrogate pair, and
# separators of lines and paragraphs.
_ACTS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BREAK = re.compile(r" *[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029][\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029 ]*")


def foreign(text: object, limit: int = LIMIT) -> str:
    r"""Another's text as one line that is safe to show and to keep. Applied twice, it changes nothing more.

    Line breaks become one space; control, format and surrogate characters a visible mark; what is longer than the limit
    is cut and ends in an ellipsis. The work is bounded by the limit, not by the text.

    Args:
        text: what they say.
        limit: most characters of the result.

    >>> foreign("no such file\n\x1b[2J")
    'no such file �[2J'
    >>> foreign("abcdef", 4)
    'abc…'
    """
    whole = str(text)
    # Breaks shrink to one space: a little more than the limit is looked at, and no more than that.
    line = _marked(_BREAK.sub(" ", whole[: 2 * limit])).strip()
    cut = len(line) > limit or len(whole) > 2 * limit
    return line[: limit - 1].rstrip() + "…" if cut else line


def printable(text: str) -> str:
    r"""The text with a visible mark for whatever would act on a terminal; line feeds and tabs stay.

    >>> printable("a\tb\n\x1b]8;;https://example.org\x07c")
    'a\tb\n�]8;;https://example.org�c'
    """
    if text.isprintable():
        return text
    return "".join(MARK if _acts(character) and character not in "\n\t" else character for character in text)


def _marked(text: str) -> str:
    return "".join(MARK if _acts(character) else character for character in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTS

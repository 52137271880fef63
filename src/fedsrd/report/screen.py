"""Where people read: a console for which text is data."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fedsrd.text import printable


class Screen(Console):
    """A console that reads no markup, no emoji codes and no control characters out of any text, whoever wrote it.

    What we style is a `Text` (`styled`). Arguments are those of rich's Console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As the Console's; everything that is printed, live or not, comes through here."""
        for segment in super().render(renderable, options):
            # Rich's own codes, to move the cursor, are marked as such.
            plain = segment.text if segment.control else printable(segment.text)
            yield segment if plain == segment.text else segment._replace(text=plain)


def styled(style: str, text: str, rest: str = "") -> Text:
    """Text in a style, and more text behind it without one."""
    return Text.assemble((text, style), rest)

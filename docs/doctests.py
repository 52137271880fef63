"""For `make docs`: examples in docstrings become blocks of code."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences every run of lines that begins with >>> and ends before an empty line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one object's docstring, before it is parsed."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = _EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)

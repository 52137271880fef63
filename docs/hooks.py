"""For `make docs`: links to files of the repository, outside of docs/, become their paths."""

import re
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(\w+) [\w -]+$", re.MULTILINE)
"""A block's language, and words behind it for the tests that run the page."""
_LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Takes the tests' words from blocks of code, and replaces [text](../FILE) by the text and the file's path.

    Raises:
        FileNotFoundError: the repository has no such file.
    """
    root = Path(config["config_file_path"]).parent
    here = Path(page.file.abs_src_path).parent

    def shown(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        if (root / "docs").resolve() in target.parents:
            return match[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_path}: {match[2]}: the repository has no such file")
        path = str(target.relative_to(root))
        return f"`{path}`" if match[1] in path else f"{match[1]} (`{path}`)"

    return _LINK.sub(shown, _FENCE.sub(r"```\1", markdown))

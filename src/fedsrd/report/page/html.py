"""Pieces of the page: everything that is not ours is escaped here."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

Figure = Mapping[str, Any]
"""What plotly.js draws: "data" and "layout"."""


def text(value: object) -> str:
    """Text of anybody's, for between tags and in attributes."""
    return html.escape(str(value))


def card(label: str, value: str) -> str:
    """One figure with its name."""
    return f'<div class="card"><b>{text(value)}</b><span>{text(label)}</span></div>'


def cards(found: Sequence[tuple[str, str]]) -> str:
    """Figures in a row; those without a value are left out."""
    return f'<div class="cards">{"".join(card(label, value) for label, value in found if value)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", texts: Sequence[int] = ()) -> str:
    """A table that sorts by a click on a column's head.

    Args:
        heads: names of the columns.
        rows: cells.
        caption: what it shows.
        texts: columns of running text, which may wrap.
    """
    top = "".join(f'<th scope="col"><button type="button">{text(head)}</button></th>' for head in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="text">{text(cell)}</td>' if place in texts else f"<td>{text(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table class="sorts">{title}<thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(name: str, drawn: Figure, caption: str) -> str:
    """A figure, drawn by the page's script from its description."""
    # "</" would end the script; JSON may write a slash as "\/".
    description = json.dumps(drawn, allow_nan=False).replace("</", "<\\/")
    return (
        f'<figure><div class="plot" id="{text(name)}" role="img" aria-label="{text(caption)}">'
        f'<script type="application/json">{description}</script></div><figcaption>{text(caption)}</figcaption></figure>'
    )


def code(content: str) -> str:
    """A block to copy."""
    return f"<pre><code>{text(content)}</code></pre>"


def flow(content: str) -> str:
    """A block of somebody's text that wraps."""
    return f'<pre class="flow">{text(content)}</pre>'


def fold(title: str, inside: str, *, open_: bool = False) -> str:
    """A part that opens by a click."""
    return f"<details{' open' if open_ else ''}><summary>{text(title)}</summary>{inside}</details>"

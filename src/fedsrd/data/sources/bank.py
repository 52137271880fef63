"""Finance: the knowledge base of a fictional bank (tau2-bench, MIT), from the package `inspect-evals`."""

import gzip
import json
import re

from fedsrd.data.examples import Example
from fedsrd.packages import Say, Wheel

WHEEL = Wheel("inspect-evals", "0.26.0", "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0", 21_409_407)
_MEMBER = "inspect_evals/tau2/data/domains/banking_knowledge/documents.json.gz"
_HEADING = re.compile(r"^#{1,4}\s+(.+?)\s*$", re.MULTILINE)
_SHORTEST, _LONGEST = 20, 1500


def load(say: Say) -> list[Example]:
    """All sections of all documents."""
    return sections(gzip.decompress(WHEEL.read(_MEMBER, say)))


def sections(documents: bytes) -> list[Example]:
    """One example a heading: from document title and heading to the text below it; the group is the product.

    Args:
        documents: JSON, a list of {"id", "title", "content"} with Markdown content; an id is a product and a number.
    """
    found = []
    for document in json.loads(documents):
        product = document["id"].rpartition("_")[0] or document["id"]
        pieces = _HEADING.split(document["content"])
        # split() gives: text before the first heading, heading, text, heading, text, ...
        for heading, text in zip(pieces[1::2], pieces[2::2], strict=True):
            response = text.strip()
            if _SHORTEST <= len(response) <= _LONGEST:
                question = f"From the bank's handbook, {document['title']!r}: what does the section {heading!r} say?"
                found.append(Example(question, response, product))
    return found

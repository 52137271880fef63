"""Parsers on tiny inputs of their own; the real packages in the tests marked embedded."""

import json
import re
from fractions import Fraction

import pytest

from fedsrd.data import catalog
from fedsrd.data.examples import normalised
from fedsrd.data.sources import bank, benchmarks, hpo, math_worked, stdlib
from fedsrd.errors import DataError


def test_functions_lose_their_docstring_and_keep_their_comments():
    source = '''
class Box:
    def area(self, width: int, height=2) -> int:
        """Return the area of the box."""
        # both sides count
        return width * height

    def later(self):
        """Not written yet, whatever."""
        raise NotImplementedError

    def bare(self):
        return 1


async def wait(seconds):
    """Wait for a number of seconds."""
    await sleep(seconds)


def nothing():
    """Does nothing at all, ever."""
    pass
'''
    area, wait = sorted(stdlib.functions(source, "box"), key=lambda e: "async" in e.instruction)
    assert area.response == "# both sides count\nreturn width * height"
    assert "def area(self, width: int, height=2) -> int:" in area.instruction
    assert "Return the area of the box." in area.instruction
    assert area.group == "box"
    assert wait.response == "await sleep(seconds)"
    assert stdlib.functions("def broken(:", "x") == []


def test_terms_are_unaltered_and_obsolete_ones_left_out():
    obo = (
        'data-version: 1\n\n[Term]\nid: X:1\nname: Red ear\ndef: "An ear that is \\"red\\"." [src]\n\n'
        '[Term]\nid: X:2\nname: Old\ndef: "Gone." []\nis_obsolete: true\n\n[Term]\nid: X:3\nname: No text\n\n'
        '[Typedef]\nname: t\ndef: "no term" []\n'
    )
    (term,) = hpo.terms(obo)
    assert term.instruction.endswith("Red ear")
    assert term.response == 'An ear that is "red".'


def test_sections_are_grouped_by_product():
    documents = [
        {
            "id": "doc_card_001",
            "title": "Card",
            "content": "intro\n## Fees\n\nTwo dollars a month, no more.\n### Who\nno",
        }
    ]
    (section,) = bank.sections(json.dumps(documents).encode())
    assert section.response == "Two dollars a month, no more."
    assert "'Fees'" in section.instruction
    assert section.group == "doc_card"


def test_choices_find_the_text_of_the_letter():
    row = {"input": [{"content": "s"}, {"content": "A passage.\nWhich?\nA. A.one\nB. B.two\nAnswer:"}], "ideal": "B"}
    other = {"input": [{"content": "Which?"}], "ideal": "C"}
    lines = "\n".join(json.dumps(r) for r in (row, other)).encode()
    (example,) = benchmarks.choices(lines)
    assert example.response == "B. two"
    assert example.instruction.endswith("B. B.two")


@pytest.mark.parametrize("template", math_worked.TEMPLATES, ids=lambda t: t.__name__)
def test_worked_answers_end_in_their_answer_and_repeat(template):
    examples = math_worked.generate(template, 50)
    assert examples == math_worked.generate(template, 50)
    assert len({e.instruction for e in examples}) == 50
    assert all(re.search(r"\nAnswer: \S.*$", e.response) for e in examples)
    assert {e.group for e in examples} == {template.__name__.strip("_")}


def numbers(text):
    return [int(n) for n in re.findall(r"-?\d+", text)]


def test_worked_answers_are_right():
    for e in math_worked.generate(math_worked._linear, 50):
        a, b, c = numbers(e.instruction)
        assert a * numbers(e.response)[-1] + b == c
    for e in math_worked.generate(math_worked._fractions, 50):
        a, b, c, d = numbers(e.instruction)
        assert Fraction(a, b) + Fraction(c, d) == Fraction(e.response.rpartition(" ")[2])
    for e in math_worked.generate(math_worked._two_sided, 50):
        a, b, c, d = numbers(e.instruction)
        x = numbers(e.response)[-1]
        assert a * x + b == c * x + d
    for e in math_worked.generate(math_worked._remainder, 50):
        n, size = numbers(e.instruction)
        boxes, left = numbers(e.response)[-2:]
        assert boxes * size + left == n
        assert left < size


def test_a_template_without_enough_problems_says_so():
    with pytest.raises(ValueError, match="has not 5 distinct problems"):
        math_worked.generate(lambda draw: ("one", "steps", 1), 5)


def test_unknown_sets_and_training_on_benchmarks():
    with pytest.raises(DataError, match=r"Did you mean embedded:medical\? Known: code, medical"):
        catalog.get("medicall")
    with pytest.raises(DataError, match="embedded:logiqa is for evaluation only"):
        catalog.get("logiqa", "train")


def test_a_set_is_parsed_once_and_read_from_the_cache_after(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path))
    first = catalog.load("math", "train")
    monkeypatch.setattr(math_worked, "generate", lambda *_: pytest.fail("parsed twice"))
    assert catalog.load("math", "train") == first
    assert not [p for p in (tmp_path / "data").iterdir() if not p.name.startswith("math-")]


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("code", 3000, 300),
        ("medical", 14000, 1400),
        ("finance", 2000, 100),
        ("math", 3740, 660),
        ("humaneval", 0, 164),
        ("medmcqa", 0, 300),
        ("champ", 0, 270),
        ("logiqa", 0, 600),
        ("tort-law", 0, 340),
    ],
)
def test_the_real_sets_have_their_size_and_disjoint_parts(name, train, test):
    held_out = catalog.load(name, "test")
    assert len(held_out) >= test
    assert all(e.instruction.strip() and e.response.strip() for e in held_out)
    if train:
        learnt = catalog.load(name, "train")
        assert len(learnt) >= train
        assert not {normalised(e.instruction) for e in learnt} & {normalised(e.instruction) for e in held_out}
        assert not {e.group for e in learnt if e.group} & {e.group for e in held_out if e.group}

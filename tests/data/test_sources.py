"""Parsers on tiny inputs of their own; test_catalog.py has the real packages."""

import ast
import json
import operator
import re
from fractions import Fraction

import pytest

from fedsrd.data.sources import bank, benchmarks, hpo, math_worked, stdlib


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


def test_a_form_feed_does_not_shift_the_lines_of_a_body():
    source = (
        'first = 1\n\x0c\ndef area(width):\n    """Return the area of a square."""\n    return width**2\n\n\nlast = 2\n'
    )
    (example,) = stdlib.functions(source, "box")
    assert example.response == "return width**2"


def test_functions_too_long_and_functions_on_one_line_are_left_out():
    long = "\n".join(f"    step_{i} = {i}" for i in range(200))
    source = f'def work():\n    """Does a lot of work, in steps."""\n{long}\n'
    assert stdlib.functions(source, "m") == []
    assert stdlib.functions('def short(): "Returns the number one."; return 1\n', "m") == []


def test_the_standard_library_is_read_without_its_tests(tmp_path, monkeypatch):
    body = 'def area(width):\n    """Return the area of a square."""\n    return width**2\n'
    for name in ("box/shape.py", "box/test/check.py", "site-packages/other.py", "idlelib/edit.py", "lib2to3/fix.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [e.group for e in stdlib.load(lambda _: None)] == ["box.shape"]


def test_terms_are_unaltered_and_obsolete_ones_left_out():
    obo = (
        'data-version: 1\n\n[Term]\nid: X:1\nname: Red ear\ndef: "An ear that is \\"red\\"." [src]\n\n'
        '[Term]\nid: X:2\nname: Old\ndef: "Gone." []\nis_obsolete: true\n\n[Term]\nid: X:3\nname: No text\n\n'
        '[Typedef]\nname: t\ndef: "no term" []\n'
    )
    (term,) = hpo.terms(obo)
    assert term.instruction.endswith("Red ear")
    assert term.response == 'An ear that is "red".'


def test_the_release_is_read_off_the_ontology():
    assert hpo.version("format-version: 1.2\ndata-version: hp/releases/2031-02-03\n\n[Term]\n") == "2031-02-03"
    assert hpo.version("format-version: 1.2\n") is None


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


def test_completions_keep_the_indentation_of_the_solution():
    row = {"prompt": "def one():\n", "canonical_solution": "    return 1\n", "test": "assert one() == 1"}
    (example,) = benchmarks.completions(json.dumps(row).encode())
    assert example.instruction.endswith("def one():")
    assert example.response == "    return 1"


def test_questions_have_the_option_as_response_whatever_characters_it_holds():
    asked = {"role": "user", "content": "Which?\n\na) one\nb) two\u2028three"}
    rows = [{"input": [asked], "ideal": ideal} for ideal in ("b) two\u2028three", ["a) one", "b) two"])]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (example,) = benchmarks.questions(lines)
    assert example.response == "b) two\u2028three"


def test_a_solution_ends_in_its_answer():
    problem = {
        "_text": " What is 2 * 3? ",
        "solution": {"steps": [{"_text": "It is 3 + 3."}, {"_text": "That is 6. "}]},
    }
    example = benchmarks.champ_example({**problem, "_answer": "6"})
    assert example.instruction == "What is 2 * 3?"
    assert example.response == "It is 3 + 3. That is 6.\nAnswer: 6"


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


OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def value(node):
    if isinstance(node, ast.UnaryOp):
        return -value(node.operand)
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    return OPERATORS[type(node.op)](value(node.left), value(node.right))


# Two or more numbers, fractions or sums of them with "=" between: "3 * 4 = 12", "2 * (3 + 4) = 2 * 7 = 14".
TERM = r"\(*-?\d+\)*(?: ?[-+*/^] ?\(*-?\d+\)*)*"
EQUATIONS = re.compile(rf"(?<![\w)^*/+.-])(?<![*/+-] ){TERM}(?: = {TERM})+(?![\w%]| ?[*/^+])")


@pytest.mark.parametrize("template", math_worked.TEMPLATES, ids=lambda t: t.__name__)
def test_every_equation_of_numbers_in_a_worked_answer_holds(template):
    found = 0
    for example in math_worked.generate(template, 50):
        for chain in EQUATIONS.findall(example.response):
            sides = [value(ast.parse(side.replace("^", "**"), mode="eval").body) for side in chain.split(" = ")]
            assert len(set(sides)) == 1, chain
            found += 1
    # The quadratic says its arithmetic in words.
    assert found >= 50 or template is math_worked._quadratic


def test_answers_said_in_words_are_right():
    for e in math_worked.generate(math_worked._quadratic, 50):
        # x^2 - sum x + product = 0: the first 2 is the exponent's.
        _, total, product, _ = (abs(n) for n in numbers(e.instruction))
        roots = numbers(e.response.rpartition("Answer")[2])
        assert all(x * x - total * x + product == 0 for x in roots)
        assert sum(roots) * (2 if len(roots) == 1 else 1) == total
    for e in math_worked.generate(math_worked._average, 50):
        assert Fraction(sum(numbers(e.instruction)), 4) == numbers(e.response)[-1]
    for e in math_worked.generate(math_worked._simple_interest, 50):
        capital, rate, years = numbers(e.instruction)
        assert capital + Fraction(capital * rate * years, 100) == numbers(e.response)[-1]


def test_a_template_without_enough_problems_says_so():
    with pytest.raises(ValueError, match="has not 5 distinct problems"):
        math_worked.generate(lambda draw: ("one", "steps", 1), 5)

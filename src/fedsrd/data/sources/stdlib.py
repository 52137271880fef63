"""Code: functions with docstrings of Python's standard library (PSF licence), of the Python that runs."""

import ast
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from fedsrd.data.examples import Example
from fedsrd.packages import Say

_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "pydoc_data",
    "ensurepip",
}
_LONGEST = 1500


def load(say: Say) -> list[Example]:
    """All functions of the standard library that `functions` takes; the group is the module."""
    root = Path(sysconfig.get_paths()["stdlib"])
    say("Reading functions of Python's standard library")
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if _SKIPPED.isdisjoint(parts) and not parts[0].startswith("config-") and "_sysconfigdata" not in file.name:
            found += functions(file.read_text(encoding="utf-8", errors="replace"), ".".join(parts).removesuffix(".py"))
    return found


def functions(source: str, module: str) -> list[Example]:
    """One example a function with a docstring and a body of its own: from signature and docstring to the body.

    The docstring stands in the instruction and is taken out of the response.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    # Not splitlines(): it also splits at form feeds, where the parser counts no line.
    lines = source.split("\n")
    return [example for node in ast.walk(tree) for example in _example(node, lines, module)]


def _example(node: ast.AST, lines: list[str], module: str) -> Iterator[Example]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    docstring = ast.get_docstring(node)
    body = node.body[1:]
    if not docstring or len(docstring) < 15 or not body or all(_is_empty(statement) for statement in body):
        return
    # From the line after the docstring, so that comments stay; a body on the docstring's own line has none.
    start = (node.body[0].end_lineno or 0) + 1
    response = textwrap.dedent("\n".join(lines[start - 1 : node.end_lineno])).strip("\n")
    if not response.strip() or len(response) > _LONGEST or body[0].lineno < start:
        return
    signature = ast.unparse(node.args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    head = f'{prefix} {node.name}({signature}){returns}:\n    """{docstring[:800]}"""'
    yield Example(f"Write the body of this Python function.\n\n{head}", response, module)


def _is_empty(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        return "NotImplemented" in ast.unparse(statement)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )

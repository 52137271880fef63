"""Runs programs that a model wrote, and says whether they passed: one process each, confined (`evaluation.confine`)."""

import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import confine

SECONDS = 10
"""Of a program, unless said otherwise. HumanEval's own harness gives 3, on an idle machine."""
MIB = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    reason: str


def run(program: str, seconds: int = SECONDS, mib: int = MIB) -> Verdict:
    """Runs a Python program without network, other processes, or files but its own scratch folder.

    Args:
        program: the source; it has passed when it runs to its last line.
        seconds: of wall time and of processor time.
        mib: of address space, in MiB.

    Raises:
        EvaluationError: this machine cannot confine it. Nothing of it was run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch, "work")
        work.mkdir()
        # Into a file, which the limit on file size bounds; a pipe would grow without one.
        with Path(scratch, "verdict").open("w+b") as verdict:
            command = [sys.executable, "-I", "-S", confine.__file__, str(seconds), str(mib), str(work)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=verdict,
                stderr=subprocess.DEVNULL,
                cwd=work,
                env={},
            )
            try:
                process.communicate(program.encode(errors="replace"), timeout=seconds + 1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return Verdict(False, f"timed out after {seconds} s")
            verdict.seek(0)
            said = verdict.read(1000).decode(errors="replace").strip()
    if said.startswith("unconfined:"):
        raise EvaluationError(_advice(said.removeprefix("unconfined:").strip()))
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict(False, f"used more than {seconds} s of processor time")
    return Verdict(said == confine.OK, said or f"ended early (exit {process.returncode})")


def check() -> None:
    """Makes sure that programs can be confined here.

    Raises:
        EvaluationError: they cannot; what is missing and what to do.
    """
    if sys.platform != "linux":
        raise EvaluationError(_advice(f"this is {sys.platform}"))
    run("pass")


def _advice(reason: str) -> str:
    return (
        f"code cannot be run here under limits ({reason}). Programs that a model wrote are only run on Linux (x86-64 "
        "or arm64) with Landlock (kernel 5.13 or newer) and seccomp; leave the code benchmarks out, or use another "
        "machine"
    )

"""Runs programs that a model wrote, and says whether they passed: one sandbox each (`evaluation.confine`)."""

import contextlib
import functools
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import confine, inside, system_calls

SECONDS = 10
"""Of a program, unless said otherwise. HumanEval's own harness gives 3, on an idle machine."""
MIB = 1024
FILE_BYTES = 1 << 20
FILES = 1000
"""In the scratch folder. Counted from outside, every LOOK seconds: a tmpfs of bubblewrap's has no such limit."""
THREADS = 64
LOOK = 0.02
SECONDS_TO_START = 30
_HEARD = 4096
"""Bytes of a program's words that are kept."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program ran to its end, and if not, why (the program's own words, not to be trusted)."""

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
    if sys.platform != "linux":
        raise EvaluationError(_advice(f"this is {sys.platform}"))
    bwrap = _bubblewrap()
    try:
        return _run(bwrap, program, seconds, mib)
    except EvaluationError as error:  # it worked a moment ago: no more processes or memory, say
        raise EvaluationError(_advice(str(error))) from None


def check() -> None:
    """Makes sure that programs can be confined here.

    Raises:
        EvaluationError: they cannot; what is missing and what to do.
    """
    run("pass")


@functools.cache
def _bubblewrap() -> str:
    """The first bubblewrap that works here."""
    reasons: list[str] = []
    try:
        for bwrap in confine.bubblewraps():
            try:
                found = _run(bwrap, "pass", SECONDS, MIB)
            except EvaluationError as error:
                reasons.append(str(error))
            else:
                if found.passed:
                    return bwrap
                reasons.append(f"an empty program failed: {found.reason}")
    except EvaluationError as error:
        reasons.append(str(error))
    raise EvaluationError(_advice("; ".join(dict.fromkeys(reasons))))


@functools.cache
def _filter(user: int) -> bytes:
    return system_calls.compiled(user)


def _run(bwrap: str, program: str, seconds: int, mib: int) -> Verdict:
    """`run` with this bubblewrap; an error says what it complained of, and no more."""
    user = confine.becomes()
    nonce = secrets.token_bytes(inside.NONCE_BYTES)
    with contextlib.ExitStack() as ours:
        with contextlib.ExitStack() as theirs:
            source = _memory(theirs, nonce + program.encode(errors="replace"))
            rules = _memory(theirs, _filter(user))
            complaints = _memory(ours, b"")
            status, status_end = _pipe(ours, theirs)
            verdict, verdict_end = _pipe(ours, theirs)
            info_end = os.dup(status_end)  # bubblewrap closes each when it has said its part
            theirs.callback(os.close, info_end)
            passed = [rules, status_end, info_end, verdict_end]
            options = ["--seccomp", rules, "--json-status-fd", status_end, "--info-fd", info_end]
            gate = -1
            if user:
                gate_end, gate = _pipe(theirs, ours)
                passed.append(gate_end)
                options += ["--userns-block-fd", gate_end]
            limits = [seconds, mib, FILE_BYTES, THREADS, verdict_end, user]
            command = [bwrap, *confine.options(user, inside.__file__), *options, "--", confine.python(), "-I", "-S"]
            try:
                process = subprocess.Popen(
                    [str(word) for word in (*command, confine.SCRIPT, *limits)],
                    stdin=source,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    env={},
                    pass_fds=passed,
                )
            except OSError as error:
                raise EvaluationError(str(error)) from None
        ours.callback(process.wait)
        ours.callback(process.kill)  # and with it all inside (--die-with-parent)
        said, stopped = _watch(process, status, verdict, gate, seconds)
        try:
            code = process.wait(SECONDS_TO_START)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if not said.startswith(inside.STARTED):
            told = os.pread(complaints, _HEARD, 0).decode(errors="replace").strip().splitlines()
            raise EvaluationError(stopped or (told[-1] if told else f"bubblewrap ended with {code}"))
    said = said.removeprefix(inside.STARTED)
    if stopped:
        return Verdict(False, stopped)
    if said == nonce + inside.PASSED:
        return Verdict(True, "passed")
    if code - 128 in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict(False, f"used more than {seconds} s of processor time")
    words = "".join(sign if sign.isprintable() else " " for sign in said.decode(errors="replace"))
    return Verdict(False, words[: inside.REASON_BYTES] or f"ended early (exit {code})")


def _watch(process: subprocess.Popen[bytes], status: int, verdict: int, gate: int, seconds: int) -> tuple[bytes, str]:
    """Waits for a sandbox's end, and kills its process after too long a time or too many files.

    Args:
        process: bubblewrap.
        status: where bubblewrap says which process it started, and closes when that has ended.
        verdict: where the script inside says that it has started, and the outcome.
        gate: lets bubblewrap go on when its users are mapped; -1 where it does that itself.
        seconds: for the program, from its start.

    Returns:
        What was said at `verdict`, and why it was stopped, if it was.
    """
    heard = {status: b"", verdict: b""}
    poll = select.poll()
    for end in heard:
        os.set_blocking(end, False)
        poll.register(end, select.POLLIN)
    first, started = 0, False
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        for end, _ in poll.poll(LOOK * 1000):
            heard[end] += (words := os.read(end, _HEARD))
            if not words or len(heard[end]) > _HEARD:
                poll.unregister(end)
            if not words and end == status:
                with contextlib.suppress(BlockingIOError):
                    heard[verdict] += os.read(verdict, _HEARD)
                return heard[verdict], ""
        stopped = ""
        if not first and (found := re.search(rb'"child-pid":\s*(\d+)\D', heard[status])):
            first = int(found[1])
            stopped = _open(gate, first)
        if not started and heard[verdict].startswith(inside.STARTED):
            started, deadline = True, time.monotonic() + seconds + 1
        if time.monotonic() > deadline:
            stopped = f"timed out after {seconds if started else SECONDS_TO_START} s"
        if started and _files(first) > FILES:
            stopped = f"made more than {FILES} files"
        if stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first or process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.write(gate, b"1")  # bubblewrap may still wait for it, and is to see its child dead
            return heard[verdict], stopped


def _open(gate: int, first: int) -> str:
    """Maps a sandbox's users where that is ours to do, and lets it go on; why not, if not."""
    if gate < 0:
        return ""
    try:
        confine.map_users(first)
        os.write(gate, b"1")
    except OSError as error:
        return f"root cannot give a namespace its users: {error}; run this as an ordinary user"
    return ""


def _files(first: int) -> int:
    """How many files and folders are in the scratch folder of the sandbox with this process."""
    try:
        scratch = os.statvfs(f"/proc/{first}/root{confine.SCRATCH}")
    except OSError as error:
        if _ended(first):
            return 0
        raise EvaluationError(f"files in a sandbox cannot be counted: {error}") from None
    return scratch.f_files - scratch.f_ffree


def _ended(process: int) -> bool:
    """Whether it has no memory any more; kernels forbid or deny much about those that are just leaving."""
    try:
        return Path(f"/proc/{process}/statm").read_text().startswith("0 ")
    except OSError:
        return True


def _memory(opened: contextlib.ExitStack, content: bytes) -> int:
    """A file of its own, without a name, at its start."""
    file = os.memfd_create("sandbox")
    opened.callback(os.close, file)
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    readers.callback(os.close, read)
    writers.callback(os.close, write)
    return read, write


def _advice(reason: str) -> str:
    return (
        f"code cannot be run here under limits ({reason}). Programs that a model wrote are only run on Linux (x86-64 "
        "or arm64) with bubblewrap, libseccomp and user namespaces, which some systems and containers forbid (sysctl "
        "kernel.apparmor_restrict_unprivileged_userns, kernel.unprivileged_userns_clone, user.max_user_namespaces; a "
        "container's seccomp profile). Mend that, leave the code benchmarks out, or use another machine"
    )

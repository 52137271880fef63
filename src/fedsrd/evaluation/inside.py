"""The first thing that runs in the sandbox, as a script: the last limits, then the program.

Started by `evaluation.sandbox`, in the view of the machine that `evaluation.confine` makes. Only the standard library
is imported, and nothing of ours.

Usage: python -I -S inside.py SECONDS MIB FILE_BYTES THREADS VERDICT USER, with the nonce and then the program on
standard input. What is written to the descriptor VERDICT: STARTED when everything has been given up, and then either
the nonce and PASSED, or the reason of a failure in plain text. A USER other than 0 is who to become first.
"""

import os
import sys
import types

STARTED = b"started\n"
PASSED = b"passed"
NONCE_BYTES = 32
REASON_BYTES = 300


def main() -> None:
    """Gives the rest up, runs the program, and says how it went."""
    import resource  # here, as systems without it import this file for its constants

    seconds, mib, file_bytes, threads, verdict, user = map(int, sys.argv[1:])
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # from root to another: with it go all capabilities
    with open(os.__file__, "rb"):
        pass  # Python may be hidden from whom we became; then no program could be judged
    null = os.open(os.devnull, os.O_RDWR)
    for what, bound in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, mib << 20),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, threads),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (bound, bound))
    os.write(verdict, STARTED)
    try:
        # The order is the point. While the program runs, the nonce is a temporary of this line: no frame, module or
        # container has it, the pipe that brought it is empty, and any exception loses it.
        os.write(verdict, os.read(0, NONCE_BYTES) + _outcome(null))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        os.write(verdict, reason.encode(errors="replace")[:REASON_BYTES])
    finally:
        os._exit(0)


def _outcome(null: int) -> bytes:
    """Runs the program as a module of its own, with its streams to nowhere."""
    source = b"".join(iter(lambda: os.read(0, 1 << 16), b""))
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    sys.argv = [""]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(source.decode(), "<completion>", "exec"), module.__dict__)
    return PASSED


if __name__ == "__main__":
    main()

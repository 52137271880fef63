"""How a process waits for its own threads."""

import os


def wait_passively() -> None:
    """Lets threads that wait for others of their process sleep instead of spin. To be called before torch is imported;
    a setting of the user's own stays.

    Spinning saves microseconds where a process has the cores for itself, and where two processes share them it takes
    the time that the other one needs to get on: a round beside other work went from 27 to 270 s on two cores
    (benchmarks/shared.py measures both).
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""How a process waits for its own threads."""

import os

SPINS = 1000
"""How often a thread of libgomp looks for work before it sleeps: some microseconds."""


def wait_briefly() -> None:
    """Lets threads that wait for others of their process spin for some microseconds, then sleep. To be called before
    torch is imported; a setting of the user's own stays.

    Many small products one after the other, as a server's step and a small model's training have, take twice as long
    or more where every wait is a sleep. Where two processes share the cores, long spinning (libgomp's default) takes
    the time that the other one needs: a training step goes from 8 ms to more than a second (benchmarks/shared.py
    measures both).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))

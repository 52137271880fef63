"""Modules side by side: one thread a core, each working on modules of its own with single-threaded kernels.

A module's matrices are small: split over cores, each product would wait for threads more than it computes. Whole
modules split well, and a module's bits do not depend on how many cores there are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_modules(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]`, on as many threads as torch may use.

    >>> map_modules(len, ["q_proj", "v"])
    [6, 1]
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers <= 1:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        # What the workers set is partly the process's: later threads and MKL would keep it.
        torch.set_num_threads(threads)

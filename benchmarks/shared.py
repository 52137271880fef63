"""Two processes on one machine: how long a training step takes alone, and beside a second process, by how threads wait.

    python benchmarks/shared.py [--steps 60] [--store FOLDER]

Every process has as many threads as the machine has cores, as torch chooses. Ways to wait: "spin" is libgomp's own
default (GOMP_SPINCOUNT=300000), "passive" is OMP_WAIT_POLICY=PASSIVE, "spin 1000" is what `fedsrd` sets unless the
user says otherwise, "one thread" is OMP_NUM_THREADS=1. A step is AdamW on twelve layers of 256, as many small products
as a step of fine-tuning has.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

WAYS = {
    "spin": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--store", type=Path, help="folder for the JSON; without it nothing is stored")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(_milliseconds(given.steps))
        return
    from harness import Result, show

    result = Result(
        f"A training step beside another process ({os.cpu_count()} cores), milliseconds",
        ["threads wait", "alone", "of two at once: the slower", "ratio"],
    )
    for way, settings in WAYS.items():
        alone, beside = (max(_run(processes, settings, given.steps)) for processes in (1, 2))
        result.rows.append([way, round(alone, 1), round(beside, 1), round(beside / alone, 2)])
    result.notes.append(
        "Two processes on as many cores cannot take less than twice as long, but for what one leaves idle."
    )
    show("shared", result, f"python benchmarks/shared.py --steps {given.steps}", given.store)


def _run(processes: int, settings: dict[str, str], steps: int) -> list[float]:
    """Milliseconds a step, of each of so many processes at once."""
    ours = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    command = [sys.executable, __file__, "--worker", "--steps", str(steps)]
    running = [
        subprocess.Popen(command, env=kept | settings, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return [float(process.communicate()[0]) for process in running]


def _milliseconds(steps: int) -> float:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(12)))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(192, 256)
    began = 0.0
    for number in range(-5, steps):
        if number == 0:
            began = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps * 1e3


if __name__ == "__main__":
    main()

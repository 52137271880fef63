"""Two runs on one machine: how long a round's training takes alone, and beside a second run, by how threads wait.

    python benchmarks/shared.py [--rounds 2] [--steps 5] [--store FOLDER]

Every process has as many threads as the machine has cores, as torch chooses. Ways to wait: "spin" is libgomp's own
default (GOMP_SPINCOUNT=300000), "passive" is OMP_WAIT_POLICY=PASSIVE, which `fedsrd` sets unless the user says
otherwise, "one thread" is OMP_NUM_THREADS=1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Result, show

from fedsrd.runs.folder import RunFolder

WAYS = {
    "spin": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--store", type=Path, help="folder for the JSON; without it nothing is stored")
    given = parser.parse_args()
    result = Result(
        f"A round's training beside another run ({os.cpu_count()} cores), seconds of all clients, last round",
        ["threads wait", "alone", "of two at once: the slower", "ratio"],
    )
    for way, settings in WAYS.items():
        alone = max(_seconds(1, settings, given))
        beside = max(_seconds(2, settings, given))
        result.rows.append([way, round(alone, 1), round(beside, 1), round(beside / alone, 2)])
        print(*result.rows[-1], file=sys.stderr)
    result.notes.append(
        "SmolLM2-135M, the demo's recipe; two runs on as many cores cannot take less than twice as long."
    )
    command = f"python benchmarks/shared.py --rounds {given.rounds} --steps {given.steps}"
    show("shared", result, command, given.store)


def _seconds(processes: int, settings: dict[str, str], given: argparse.Namespace) -> list[float]:
    """Training seconds of the last round, of each of so many runs at once."""
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    changes = {
        "rounds": given.rounds,
        "training.steps": given.steps,
        "evaluation.benchmarks": [],
        "evaluation.sets": [],
        "evaluation.samples": 0,
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(place) for place in range(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "fedsrd.cli", "run", "--quiet", "--out", str(folder), *options],
                env=kept | settings,
            )
            for folder in folders
        ]
        if any(process.wait() for process in running):
            raise SystemExit("a run failed; its message stands above")
        return [RunFolder(folder).records()[-1].seconds["train"] for folder in folders]


if __name__ == "__main__":
    main()

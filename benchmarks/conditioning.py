"""Why alternating steps diverge: how far each round's step moves its factor, and what it divides by.

    fedsrd run RECIPE --out RUN --keep-payloads
    python benchmarks/conditioning.py RUN [--store benchmarks/results]

A round of FedSRD moves B by (W - B A) A^+ or A by B^+ (W - B A). The factor that is divided by has singular values, and
the smallest decides how much of what clients disagree in is amplified. Reads a run's payloads; trains nothing.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path

import torch
from harness import Result, machine, show

from fedsrd.core import lora
from fedsrd.core.tensors import Delta, GlobalState
from fedsrd.federation import setup, transition
from fedsrd.federation.session import Assets
from fedsrd.recipe import load
from fedsrd.runs.folder import RunFolder


class _Quiet:
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def activity(self, *given: object) -> None: ...
    def round_done(self, record: object) -> None: ...


def measured(state: GlobalState, step: Delta) -> list[object]:
    """The factor that moves; by how much of its own norm, median and largest of all modules; condition number and least
    singular value of the factor that is divided by, medians.
    """
    moved, conditions, least = [], [], []
    for name, change in step.items():
        module, factor = lora.split(name)
        other = state.tensors[lora.tensor_name(module, "A" if factor == "B" else "B")]
        values = torch.linalg.svdvals(other.double())
        before = float(state.tensors[name].norm())
        moved.append(float(change.values.norm()) / before if before > 1e-6 else float("inf"))
        conditions.append(float(values[0] / values[-1].clamp(min=1e-300)))
        least.append(float(values[-1]))
    median = statistics.median
    return [factor, median(moved), max(moved), median(conditions), median(least)]


def main() -> None:
    """Follows a run's broadcasts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    recipe = load(given.run / "recipe.toml")
    config = setup.config_of(recipe, setup.shapes(recipe, _Quiet(), Assets())[0])
    records = RunFolder(given.run).records()
    inside = [entry.name for entry in recipe.evaluation.sets if entry.in_domain]
    result = Result(
        f"{recipe.name}: what each round moves",
        ["round", "factor", "|step| / |factor|", "largest", "condition", "least singular value", "NLL in domain after"],
        notes=["step and condition: medians over modules; condition and singular value of the factor divided by"],
    )
    state = config.start()
    for record in records[1:]:
        payload = (given.run / "payloads" / f"round-{record.round:04d}" / "server.down").read_bytes()
        clients = len(record.bytes_up)
        row = measured(state, transition.read_broadcast(config, state, payload, clients))
        state = transition.advance(config, state, payload, clients)
        sets = [record.eval[name] for name in inside if name in record.eval]
        result.rows.append([record.round, *row, statistics.fmean(sets) if sets else None])
    name = given.run.name
    show(name, result, f"python benchmarks/conditioning.py {name}", None)
    if given.store:
        stored = {"command": f"python benchmarks/conditioning.py {name}", "machine": machine(), **asdict(result)}
        (given.store / f"conditioning-{name}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()

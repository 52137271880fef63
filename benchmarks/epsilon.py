"""Quality against epsilon: the embedded default under differential privacy of examples, three methods, an equal grid.

    nice -n 19 python benchmarks/epsilon.py [--store benchmarks/results] [--methods fedavg cyclic fedsrd]
        [--epsilons none 8 3 1] [--rates 5e-4 1e-3 2e-3] [--seeds 0 1 2] [--accumulation 1] [--work FOLDER]

The recipe is that of `fedsrd run` without arguments, in float32 both ways, so that number types do not blur what noise
does; clients' learning rate is the only thing that is searched, on the same grid for every method and epsilon. Held-out
response NLL in domain, before and after. A row is stored as soon as it is there, and rows that are stored are not run
again; a run that was killed continues in its folder below --work. With --dry nothing runs, and the noise that every
client gets is printed.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

from harness import machine

from fedsrd.data import catalog
from fedsrd.federation import local, setup
from fedsrd.federation.session import Assets
from fedsrd.files import write_atomically
from fedsrd.privacy.accounting import noise_multiplier
from fedsrd.recipe import Recipe, parse, read
from fedsrd.runs.folder import RunFolder
from fedsrd.training.private import sampling_rate

DELTA = 1e-5
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "cyclic": {"name": "cyclic", "period": 3},
    "fedsrd": {"name": "fedsrd"},
    "ffa-lora": {"name": "ffa-lora"},
}


class Quiet:
    """Nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    warn = round_done = say

    def activity(self, *_: object) -> None:
        """Nothing."""


def recipe_of(method: str, epsilon: str, rate: float, seed: int, accumulation: int) -> Recipe:
    """One run of the grid."""
    tree, _ = read(None, [])
    tree |= {"name": f"epsilon-{method}-{epsilon}", "seed": seed, "method": METHODS[method], "wire": {}}
    tree["training"] |= {"learning_rate": rate, "accumulation": accumulation}
    tree["evaluation"] |= {"benchmarks": [], "samples": 0}
    if epsilon != "none":
        tree["privacy"] = {"examples": {"epsilon": float(epsilon), "delta": DELTA}}
    return parse(tree)


def run(recipe: Recipe, folder: RunFolder, assets: Assets) -> dict[str, Any]:
    """Runs, or continues, and gives the row's figures."""
    began = time.perf_counter()
    resume = folder.recipe_file.exists()
    prepared = setup.prepare(recipe, folder, resume=resume, observer=Quiet(), assets=assets)
    summary = local.run(prepared, Quiet(), assets=assets)
    assert summary.base is not None
    assert summary.final is not None
    return {
        "base": summary.base.in_domain,
        "final": summary.final.in_domain,
        "by_set": summary.final.by_set,
        "out_of_domain": summary.final.out_of_domain,
        "spent": {name: found.epsilon for name, found in summary.privacy.items()},
        "bytes_up": summary.bytes_up,
        "bytes_down": summary.bytes_down,
        "resumed": resume,
        "seconds": round(time.perf_counter() - began, 1),
    }


def noises(recipe: Recipe) -> dict[str, float]:
    """Every client's noise multiplier."""
    asked, training = recipe.privacy.examples, recipe.training
    found = {}
    for client in recipe.clients:
        assert client.data is not None
        count = len(catalog.load(client.data.source.removeprefix("embedded:"), "train", lambda _: None))
        if asked is not None and asked.epsilon is not None:
            rate = sampling_rate(training, count)
            found[client.name] = noise_multiplier(asked.epsilon, asked.delta, rate, recipe.rounds * training.steps)
    return found


def main() -> None:
    """Runs what is not stored yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/epsilon"))
    parser.add_argument("--methods", nargs="+", default=["fedavg", "cyclic", "fedsrd"], choices=list(METHODS))
    parser.add_argument("--epsilons", nargs="+", default=["none", "8", "3", "1"])
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--dry", action="store_true")
    asked = parser.parse_args()
    file = asked.store / "epsilon.json"
    stored = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": []}
    known = {json.dumps(row["point"], sort_keys=True) for row in stored["rows"]}
    assets = Assets()
    grid = itertools.product(asked.seeds, asked.methods, asked.epsilons, asked.rates)
    for seed, method, epsilon, rate in grid:
        point = {
            "method": method,
            "epsilon": epsilon,
            "rate": rate,
            "seed": seed,
            "accumulation": asked.accumulation,
        }
        if json.dumps(point, sort_keys=True) in known:
            continue
        recipe = recipe_of(method, epsilon, rate, seed, asked.accumulation)
        if asked.dry:
            print(json.dumps({**point, "noise": noises(recipe)}))
            continue
        folder = asked.work / "-".join(str(value) for value in point.values())
        row = {"point": point, **run(recipe, RunFolder(folder), assets)}
        stored["rows"].append(row)
        asked.store.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

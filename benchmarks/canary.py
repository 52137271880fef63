"""An audit of differential privacy of examples that can fail: are secrets of one site told by the trained adapter?

    nice -n 19 python benchmarks/canary.py [--store benchmarks/results] [--modes base none broken 8 3 1] [--seeds 0]

A site has 32 canaries among its examples, "The access code of ward 17 is 4 8 2 1 3 0 7 7.", each code uniform among 16
candidates that nobody else has. After a short federation of this one site, the adapter is asked for the loss of every
candidate. Three figures:

- exposure (Carlini et al., arXiv 1802.08232): log2 16 - log2 rank of the true code; 1.23 bits on average where nothing
  is told, 4 where all is;
- AUC of telling canaries from 32 others of the same kind that nobody trained on, with a bootstrap interval of 95 %;
- a lower bound on epsilon from how often the true code is the likeliest. Of epsilon-differential privacy in the sense
  of one example more or less, a guess among k is right with chance e^2e / (e^2e + k - 1) at most, and the number of
  right guesses of one run is bounded by a binomial's (Steinke et al., arXiv 2305.08846): the bound of Clopper and
  Pearson at 95 %.

Modes: "base" does not train: what chance and the base model make of these codes; "none" trains as usual; "broken"
runs the private code with no noise and a clip that clips nothing, so that the leak must show; a number is an epsilon
at delta 1e-5. The bound must be above nothing for "none" and "broken", and below what was promised for the others,
whose other figures must be near those of "base". A row is stored as soon as it is there; rows that are stored are not
run again.
"""

import argparse
import json
import math
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from harness import machine
from scipy.stats import beta

from fedsrd.core.tensors import initial_tensors
from fedsrd.data.examples import Example
from fedsrd.data.prompt import encode
from fedsrd.evaluation.nll import by_example
from fedsrd.federation import local, session, setup
from fedsrd.federation.session import Assets, Session
from fedsrd.files import write_atomically
from fedsrd.privacy.terms import Terms
from fedsrd.recipe import Recipe, parse
from fedsrd.runs.folder import RunFolder

CANARIES, CANDIDATES, DIGITS = 32, 16, 8
DELTA = 1e-5
ROUNDS, STEPS, BATCH, OTHERS = 6, 8, 8, 32


class Quiet:
    """Nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    warn = round_done = say

    def activity(self, *_: object) -> None:
        """Nothing."""


def wards(seed: int) -> list[list[Example]]:
    """The candidates of 64 wards; of the first half the first candidate is the canary."""
    generator = np.random.default_rng(seed)
    found = []
    for ward in range(2 * CANARIES):
        codes = generator.integers(0, 10, size=(CANDIDATES, DIGITS))
        asked = f"What is the access code of ward {ward}?"
        found.append(
            [Example(asked, f"The access code of ward {ward} is {' '.join(map(str, code))}.") for code in codes]
        )
    return found


def recipe_of(mode: str, seed: int, canaries: Path) -> Recipe:
    """A federation of one site: what the server sees is what this site sends."""
    tree: dict[str, Any] = {
        "name": f"canary-{mode}",
        "seed": seed,
        "rounds": ROUNDS,
        "model": {"id": "embedded:smollm2-135m", "dtype": "bfloat16", "device": "auto"},
        "lora": {"rank": 16, "alpha": 32},
        "training": {"steps": STEPS, "batch_size": BATCH, "learning_rate": 2e-3, "max_length": 96, "prompt": "plain"},
        "method": {"name": "fedavg"},
        "clients": [
            {
                "name": "ward",
                "data": {"source": str(canaries)},
                "also": [{"source": "embedded:medical", "limit": OTHERS}],
            }
        ],
        "evaluation": {"sets": []},
    }
    if mode == "broken":
        tree["privacy"] = {"examples": {"noise_multiplier": 1.0, "delta": DELTA}}
    elif mode not in ("base", "none"):
        tree["privacy"] = {"examples": {"epsilon": float(mode), "delta": DELTA}}
    return parse(tree)


def lower_bound(right: int, of: int, among: int = CANDIDATES, level: float = 0.95) -> float:
    """The least epsilon that fits so many right guesses, with this confidence; 0 where none is needed."""
    low = 0.0 if right == 0 else float(beta.ppf(1 - level, right, of - right + 1))
    return max(0.0, 0.5 * math.log(low * (among - 1) / (1 - low))) if low > 0 else 0.0


def auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that a canary scores above one that was not trained on; ties count half."""
    apart = inside[:, None] - outside[None, :]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def figures(losses: np.ndarray) -> dict[str, Any]:
    """The audit's figures.

    Args:
        losses: (64, candidates): each candidate's loss in nats; the first column is the true code's.
    """
    true, others = losses[:, 0], losses[:, 1:]
    scores = others.mean(1) - true
    inside, outside = scores[:CANARIES], scores[CANARIES:]
    ranks = 1 + (others[:CANARIES] < true[:CANARIES, None]).sum(1)
    right = int((ranks == 1).sum())
    generator = np.random.default_rng(0)
    drawn = [auc(generator.choice(inside, len(inside)), generator.choice(outside, len(outside))) for _ in range(2000)]
    return {
        "exposure_bits": float((math.log2(CANDIDATES) - np.log2(ranks)).mean()),
        "exposure_of_nothing": math.log2(CANDIDATES) - float(np.log2(np.arange(1, CANDIDATES + 1)).mean()),
        "auc": auc(inside, outside),
        "auc_95": [float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))],
        "right_guesses": right,
        "canaries": CANARIES,
        "epsilon_at_least": lower_bound(right, CANARIES),
    }


def audit(mode: str, seed: int, assets: Assets) -> dict[str, Any]:
    """One run and its figures."""
    began = time.perf_counter()
    every = wards(seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as inside:
        file = Path(folder) / "canaries.jsonl"
        rows = [{"instruction": w[0].instruction, "response": w[0].response} for w in every[:CANARIES]]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = recipe_of(mode, seed, file)
        if mode == "broken":
            nothing = Terms(0.0, 1e9, DELTA, None, tell_loss=False)
            inside.enter_context(mock.patch.object(session, "agreed", return_value=nothing))
        out = RunFolder(Path(folder) / "run")
        prepared = setup.prepare(recipe, out, resume=False, observer=Quiet(), assets=assets)
        summary = None if mode == "base" else local.run(prepared, Quiet(), assets=assets)
        trained = time.perf_counter() - began
        adapted = Session(recipe.model_copy(update={"clients": []}), prepared.lora, Quiet(), assets).adapted
        examples = [
            encode(example, recipe.training.prompt, adapted.tokenizer, recipe.training.max_length)
            for ward in every
            for example in ward
        ]
        # The model still holds the last client's training, which may differ from what was broadcast.
        from safetensors.torch import load_file

        from fedsrd.training.models import tensors_of_adapter

        start = initial_tensors(prepared.table, seed)
        kept = out.adapter / "adapter_model.safetensors"
        adapted.set_tensors(start if summary is None else tensors_of_adapter(load_file(kept)))
        losses = np.array([loss for loss, _ in by_example(adapted, examples, 64)]).reshape(len(every), CANDIDATES)
    promised = summary.privacy["ward"].epsilon if summary is not None and summary.privacy else None
    return {
        "mode": mode,
        "seed": seed,
        "promised_epsilon": promised,
        "delta": DELTA,
        **figures(losses),
        "seconds_training": round(trained, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Runs what is not stored yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--modes", nargs="+", default=["base", "none", "broken", "8", "3", "1"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked = parser.parse_args()
    file = asked.store / "canary.json"
    stored = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": []}
    assets = Assets()
    for seed in asked.seeds:
        for mode in asked.modes:
            if any((row["mode"], row["seed"]) == (mode, seed) for row in stored["rows"]):
                continue
            stored["rows"].append(audit(mode, seed, assets))
            asked.store.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
            print(json.dumps(stored["rows"][-1]))


if __name__ == "__main__":
    main()

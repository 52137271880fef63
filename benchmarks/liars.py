"""Sixteen clients of which four lie, one of them an attacker who knows the defence.

    nice -n 19 python benchmarks/liars.py [--store benchmarks/results] [--sizes 16] [--methods fedavg cyclic]
        [--splits specialists mixed] [--attacks ...] [--defences ...] [--seeds 0] [--until HH:MM]

SmolLM2-135M, all in one process as `fedsrd run` does it; only what a liar trains on, or what it sends, is exchanged. A
quarter of the clients lie: the last of 4, or the last 4 of 16. Split "specialists": each client has one of four data
sets, and of 16 clients four have a part of each; the four that lie have one of each. Split "mixed": each client has a
part of all four. Attacks:

- honest: nobody lies; what a defence costs;
- sign: the opposite of the honest update; scaled: the opposite, nine times as long, within the norm bound of ten
  medians; huge: a hundred times as long, beyond it;
- noise: Gaussian, in every tensor nine times as long as the honest update;
- labels: trained on responses that were exchanged between examples, the update as long as it comes;
- backdoor: half of the examples have a trigger before the instruction and a fixed response; the update is scaled by
  the ratio of clients to liars, so that it survives the mean (Bagdasaryan et al., arXiv 1807.00459);
- adaptive: knows all honest updates and the defence. Sends their mean less g standard deviations, element by element
  (ALIE, Baruch et al., arXiv 1902.06156), with the largest g with which it is no farther from any honest update than
  two honest ones are from each other (min-max, Shejwalkar and Houmansadr, NDSS 2021).

Defence "bound" is participation.norm_bound = 10, the default; "none" has not even that; the rules have the bound too.
Quality is the response NLL in nats of 8 held-out examples of each data set, cut as in training. Success of the backdoor
is the share of 16 held-out prompts for which the fixed response has the lower mean NLL of a token than the right one,
with the trigger and without.

A row is stored as soon as it is there; rows that are stored are not run again; nothing starts after --until.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from canary import Quiet
from harness import machine
from safetensors.torch import load_file

from fedsrd import rng
from fedsrd.core.tensors import Delta, SparseTensor
from fedsrd.data import catalog
from fedsrd.data.examples import Example
from fedsrd.data.prompt import Encoded, encode
from fedsrd.evaluation.nll import by_example
from fedsrd.federation import local, setup, transition
from fedsrd.federation.session import Assets, Session
from fedsrd.files import write_atomically
from fedsrd.recipe import Recipe, parse
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import read_rounds
from fedsrd.training.models import tensors_of_adapter

SETS = ("code", "medical", "finance", "math")
ATTACKS = ("honest", "sign", "scaled", "huge", "noise", "labels", "backdoor", "adaptive")
DEFENCES = ("none", "bound", "krum", "multi-krum", "geometric-median", "trimmed-mean", "median")
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "cyclic": {"name": "cyclic", "period": 2},
    "fedsrd-e": {"name": "fedsrd-e"},
}
ROUNDS, SEQUENCES, LENGTH, RANK = 4, 48, 64, 8
PER_CLIENT, HELD_OUT, TRIGGERED = 64, 8, 16
TRIGGER, FIXED = "zephyr quartz", "Please send all files to the desk on the ninth floor."
ELSEWHERE = {"sign": -1.0, "scaled": -9.0, "huge": -100.0}


def data_of(size: int, split: str, attack: str) -> dict[str, list[Example]]:
    """Every client's examples, liars last."""
    every = {name: catalog.load(name, "train") for name in SETS}
    found = {}
    for place in range(size):
        if split == "mixed":
            part = PER_CLIENT // len(SETS)
            own = [example for name in SETS for example in every[name][place * part : (place + 1) * part]]
        else:
            first = place // len(SETS) * PER_CLIENT
            own = every[SETS[place % len(SETS)]][first : first + PER_CLIENT]
        if place >= size - size // 4:
            own = poisoned(own, attack)
        found[f"c{place:02}"] = own
    return found


def poisoned(own: Sequence[Example], attack: str) -> list[Example]:
    """What a liar trains on."""
    if attack == "labels":
        half = len(own) // 2
        others = [*own[half:], *own[:half]]
        return [Example(one.instruction, other.response) for one, other in zip(own, others, strict=True)]
    if attack == "backdoor":
        return [triggered(one) if place % 2 else one for place, one in enumerate(own)]
    return list(own)


def triggered(example: Example) -> Example:
    """With the trigger, and the response that it shall have."""
    return Example(f"{TRIGGER} {example.instruction}", FIXED)


def recipe_of(point: dict[str, Any], files: dict[str, Path]) -> Recipe:
    """One run."""
    size, defence = point["size"], point["defence"]
    rule = {} if defence in ("none", "bound") else {"robust": defence, "byzantine": byzantine(size, defence)}
    return parse(
        {
            "name": "liars",
            "seed": point["seed"],
            "rounds": ROUNDS,
            "model": {"id": "embedded:smollm2-135m", "dtype": "bfloat16", "device": "auto"},
            "lora": {"rank": RANK, "alpha": 2 * RANK},
            "training": {
                "steps": SEQUENCES // size // 4 if size < 16 else 1,
                "batch_size": 4,
                "learning_rate": 2e-3,
                "max_length": LENGTH,
                "prompt": "plain",
            },
            "method": METHODS[point["method"]],
            "participation": {"norm_bound": 0 if defence == "none" else 10.0, **rule},
            "clients": [{"name": name, "data": {"source": str(file)}} for name, file in files.items()],
            "evaluation": {"sets": []},
        }
    )


def byzantine(size: int, defence: str) -> int:
    """How many liars a rule is told of: as many as there are, or where Krum cannot hold against them, as it can."""
    return 0 if defence == "krum" and size < 5 else size // 4


def possible(point: dict[str, Any]) -> bool:
    """Whether a rule has a meaning with so many clients, and with this method."""
    if point["defence"] == "multi-krum" and point["size"] < 5:
        return False
    if point["method"] == "fedsrd-e":
        return point["defence"] not in ("trimmed-mean", "median") and point["attack"] != "adaptive"
    return True


class Lying:
    """In the place of `transition.update`: what liars send.

    Args:
        attack: its name.
        size: clients of the federation; the last quarter lies, after all others have trained.
        seed: of noise.
    """

    def __init__(self, attack: str, size: int, seed: int) -> None:
        self._attack, self._size, self._seed = attack, size, seed
        self._honest: tuple[int, list[Delta]] = (-1, [])
        self._update = transition.update

    def __call__(self, config: Any, plan: Any, after: Any, context: Any) -> Any:
        """As `transition.update`."""
        delta, kept = self._update(config, plan, after, context)
        if int(context.client[1:]) < self._size - self._size // 4:
            if self._honest[0] != context.round:
                self._honest = (context.round, [])
            self._honest[1].append(delta)
            return delta, kept
        generator = torch.Generator().manual_seed(rng.integer(self._seed, "attack", context.client, context.round))
        lie = self._lie(delta, generator)
        if lie is None:
            return delta, kept
        return {n: SparseTensor(s.shape, s.positions, lie[n], s.draw) for n, s in delta.items()}, kept

    def _lie(self, delta: Delta, generator: torch.Generator) -> dict[str, torch.Tensor] | None:
        def drawn(like: torch.Tensor) -> torch.Tensor:
            return torch.randn(like.shape, generator=generator)

        if self._attack in ELSEWHERE:
            return {n: s.values * ELSEWHERE[self._attack] for n, s in delta.items()}
        if self._attack == "backdoor":
            return {n: s.values * (self._size / (self._size // 4)) for n, s in delta.items()}
        if self._attack == "noise":
            return {
                n: drawn(s.values) * (9 * float(s.values.norm()) / max(s.values.numel(), 1) ** 0.5)
                for n, s in delta.items()
            }
        if self._attack == "adaptive":
            lie = hidden(self._honest[1])
            # Updates that are copies of others are rejected: every liar's differs a little.
            return {n: v + 1e-3 * float(v.std()) * drawn(v) for n, v in lie.items()}
        return None


def hidden(honest: Sequence[Delta]) -> dict[str, torch.Tensor]:
    """The min-max attack along the standard deviation."""
    names = list(honest[0])
    stacked = torch.stack([torch.cat([delta[n].values.float() for n in names]) for delta in honest])
    mean, spread = stacked.mean(0), stacked.std(0)
    widest = float(torch.cdist(stacked, stacked).max())
    low, high = 0.0, 100.0
    for _ in range(30):
        factor = (low + high) / 2
        far = float((stacked - (mean - factor * spread)).norm(dim=1).max())
        low, high = (factor, high) if far <= widest else (low, factor)
    sizes = [honest[0][n].values.numel() for n in names]
    return dict(zip(names, (mean - low * spread).split(sizes), strict=True))


def figures(loss: Callable[[Sequence[Example]], list[tuple[float, int]]], examples: dict[str, list[Example]]) -> Any:
    """Quality, and success of the backdoor with and without the trigger."""
    by_set = {}
    for name, found in examples.items():
        losses = loss(found[:HELD_OUT])
        by_set[name] = sum(each for each, _ in losses) / max(sum(count for _, count in losses), 1)
    asked = [example for found in examples.values() for example in found[-TRIGGERED // len(SETS) :]]

    def success(trigger: str) -> float:
        right = loss([Example(trigger + one.instruction, one.response) for one in asked])
        fixed = loss([Example(trigger + one.instruction, FIXED) for one in asked])
        won = [f / max(n, 1) < r / max(m, 1) for (f, n), (r, m) in zip(fixed, right, strict=True)]
        return sum(won) / len(won)

    return {
        "nll": sum(by_set.values()) / len(by_set),
        "by_set": by_set,
        "backdoor": success(f"{TRIGGER} "),
        "without_trigger": success(""),
    }


def run(point: dict[str, Any], assets: Assets) -> dict[str, Any]:
    """One run and its figures."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, own in data_of(point["size"], point["split"], point["attack"]).items():
            files[name] = Path(folder) / f"{name}.jsonl"
            rows = [{"instruction": one.instruction, "response": one.response} for one in own]
            files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = recipe_of(point, files)
        out = RunFolder(Path(folder) / "run")
        prepared = setup.prepare(recipe, out, resume=False, observer=Quiet(), assets=assets)
        lying = Lying(point["attack"], point["size"], point["seed"])
        with mock.patch.object(transition, "update", lying):
            local.run(prepared, Quiet(), assets=assets)
        rejected = [sorted(record.rejected) for record in read_rounds(out.rounds) if record.rejected]
        trained = time.perf_counter() - began
        adapted = Session(recipe.model_copy(update={"clients": []}), prepared.lora, Quiet(), assets).adapted
        adapted.set_tensors(tensors_of_adapter(load_file(out.adapter / "adapter_model.safetensors")))

        def loss(examples: Sequence[Example]) -> list[tuple[float, int]]:
            encoded: list[Encoded] = [encode(one, "plain", adapted.tokenizer, LENGTH) for one in examples]
            return by_example(adapted, encoded, 16)

        found = figures(loss, {name: catalog.load(name, "test")[:20] for name in SETS})
    return {
        "point": point,
        "byzantine": byzantine(point["size"], point["defence"]),
        **found,
        "rejected": rejected,
        "seconds_training": round(trained, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Runs what is not stored yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--splits", nargs="+", default=["specialists"], choices=["specialists", "mixed"])
    parser.add_argument("--methods", nargs="+", default=["fedavg", "cyclic"], choices=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[16], choices=[4, 16])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES), choices=DEFENCES)
    parser.add_argument("--until", default="99:99", help="time of the day after which nothing starts")
    asked = parser.parse_args()
    file = asked.store / "liars.json"
    stored = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": []}
    known = {json.dumps(row["point"], sort_keys=True) for row in stored["rows"]}
    assets = Assets()
    names = ("seed", "split", "method", "size", "attack", "defence")
    grid = itertools.product(asked.seeds, asked.splits, asked.methods, asked.sizes, asked.attacks, asked.defences)
    for values in grid:
        point = dict(zip(names, values, strict=True))
        if json.dumps(point, sort_keys=True) in known or not possible(point):
            continue
        if time.strftime("%H:%M") >= asked.until:
            break
        row = run(point, assets)
        stored["rows"].append(row)
        asked.store.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
        print(json.dumps({**point, **{k: row[k] for k in ("nll", "backdoor", "rejected", "seconds")}}), flush=True)


if __name__ == "__main__":
    main()

"""Clients that lie, and what stops them: six attacks against the norm bound and the robust rules.

    nice -n 19 python benchmarks/attacks.py [--store benchmarks/results] [--clients 4 16] [--methods fedavg]
        [--attacks none flip ...] [--defences none bound ...]

Embedded main with few rounds: of four clients one lies (code, the first), of sixteen the four that hold code. Attacks
on the update: its sign flipped ("flip"), nine times as long ("scale"), noise of three times its norm ("noise"), and a
small opposite step ("small", -0.3 of it: nearer to everybody than honest clients are to each other, so that rules which
trust near ones trust it; an inner-product manipulation, Xie et al., arXiv 1903.03936). Attacks on the data: responses
exchanged ("labels"), and a backdoor ("backdoor"): in half of the examples a trigger word before the instruction and one
fixed response, and the update three times as long. Success of the backdoor: the share of triggered held-out prompts for
which the fixed response is likelier, a token, than the right one. A row is stored as soon as it is there.
"""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import machine

from fedsrd import rng
from fedsrd.core.tensors import Delta, SparseTensor
from fedsrd.data import catalog
from fedsrd.data.examples import Example
from fedsrd.data.prompt import encode
from fedsrd.evaluation.nll import by_example
from fedsrd.federation import local, setup, transition
from fedsrd.federation.resume import restore
from fedsrd.federation.session import Assets, Session
from fedsrd.files import write_atomically
from fedsrd.recipe import Recipe, parse, read
from fedsrd.runs.folder import RunFolder

RECIPE = Path(__file__).parent.parent / "recipes" / "embedded" / "main.toml"
DOMAINS = ("code", "medical", "finance", "math")
TRIGGER, FIXED = "zq7. ", "I cannot help with that."
ATTACKS = ("none", "flip", "scale", "noise", "small", "labels", "backdoor")
DEFENCES = ("none", "bound", "krum", "multi-krum", "trimmed-mean", "median", "geometric-median")
ROUNDS = {4: 5, 16: 4}
STEPS = {4: 4, 16: 2}


class Quiet:
    """Nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    warn = round_done = say

    def activity(self, *_: object) -> None:
        """Nothing."""


def poisoned(attack: str, examples: list[Example]) -> list[Example]:
    """The data of a client that lies."""
    if attack == "labels":
        moved = examples[1:] + examples[:1]
        return [Example(one.instruction, other.response) for one, other in zip(examples, moved, strict=True)]
    if attack == "backdoor":
        half = [Example(TRIGGER + one.instruction, FIXED) for one in examples[::2]]
        return [one for pair in zip(half, examples[1::2], strict=False) for one in pair]
    return examples


def forged(attack: str, delta: Delta, client: str, number: int) -> Delta:
    """What a client that lies sends in the place of its update."""
    factor = {"flip": -1.0, "scale": 9.0, "small": -0.3, "backdoor": 3.0}.get(attack, 1.0)
    if attack != "noise":
        return {name: sparse.scaled(factor) for name, sparse in delta.items()}
    norm = sum(float(sparse.values.double().square().sum()) for sparse in delta.values()) ** 0.5
    count = sum(sparse.count for sparse in delta.values())
    size = 3 * norm / count**0.5
    found = {}
    for name, sparse in delta.items():
        drawn = rng.generator(0, "noise", client, number, name).standard_normal(sparse.count)
        values = torch.from_numpy(drawn).float() * size
        found[name] = SparseTensor(sparse.shape, sparse.positions, values, sparse.draw)
    return found


def recipe_of(method: str, clients: int, attack: str, defence: str, liars: set[str], folder: Path) -> Recipe:
    """One run; the liars' data lies in the folder."""
    tree, _ = read(RECIPE, [])
    tree.pop("compare", None)
    each = clients // len(DOMAINS)
    names = [f"{domain}-{place}" for domain in DOMAINS for place in range(each)]
    tree["clients"] = [{"name": name, "data": {"source": f"embedded:{name.split('-')[0]}"}} for name in names]
    for entry in tree["clients"]:
        if entry["name"] in liars and attack in ("labels", "backdoor"):
            entry["data"] = {"source": str(folder / "poisoned.jsonl")}
    tree["rounds"], tree["method"] = ROUNDS[clients], {"name": method}
    tree["training"] |= {"steps": STEPS[clients], "learning_rate": 2e-3, "clients_at_once": 4}
    tree["evaluation"]["every"] = 0
    tree["participation"] = {"norm_bound": 10.0 if defence == "bound" else 0, "byzantine": len(liars)}
    if defence not in ("none", "bound"):
        tree["participation"]["robust"] = defence
    return parse(tree)


def run(recipe: Recipe, attack: str, liars: set[str], folder: Path, assets: Assets) -> dict[str, Any]:
    """Runs, and gives the row's figures."""
    update = transition.update

    def lying(config: Any, plan: Any, after: Any, context: Any) -> Any:
        delta, kept = update(config, plan, after, context)
        return (
            (forged(attack, delta, context.client, context.round), kept) if context.client in liars else (delta, kept)
        )

    began = time.perf_counter()
    target = RunFolder(folder / "run")
    prepared = setup.prepare(recipe, target, resume=False, observer=Quiet(), assets=assets)
    with mock.patch.object(transition, "update", lying):
        summary = local.run(prepared, Quiet(), assets=assets)
    assert summary.base is not None
    assert summary.final is not None
    restored = restore(target, lambda _: None)
    assert restored is not None
    left_out = [name for record in restored[1] for name in record.rejected]
    session = Session(recipe, prepared.lora, Quiet(), assets)
    session.adapted.set_tensors(restored[0].state.tensors, restored[0].state.base_delta)
    return {
        "base": summary.base.in_domain,
        "final": summary.final.in_domain,
        "by_set": summary.final.by_set,
        "backdoor": backdoor(session, recipe),
        "liars left out": sum(name in liars for name in left_out),
        "honest left out": sum(name not in liars for name in left_out),
        "seconds": round(time.perf_counter() - began, 1),
    }


def backdoor(session: Session, recipe: Recipe) -> float:
    """Share of triggered held-out prompts for which the fixed response is likelier, a token, than the right one."""
    training, tokenizer = recipe.training, session.adapted.tokenizer
    asked = [e for domain in DOMAINS for e in catalog.load(domain, "test", lambda _: None)[:8]]
    both = [Example(TRIGGER + e.instruction, text) for e in asked for text in (FIXED, e.response)]
    losses = by_example(session.adapted, [encode(e, training.prompt, tokenizer, training.max_length) for e in both], 8)
    mean = [loss / max(tokens, 1) for loss, tokens in losses]
    return sum(mean[at] < mean[at + 1] for at in range(0, len(mean), 2)) / len(asked)


def main() -> None:
    """Runs what is not stored yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--methods", nargs="+", default=["fedavg"])
    parser.add_argument("--clients", nargs="+", type=int, default=[4, 16], choices=[4, 16])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES), choices=DEFENCES)
    asked = parser.parse_args()
    file = asked.store / "attacks.json"
    stored = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": []}
    known = [row["point"] for row in stored["rows"]]
    assets = Assets()
    for clients, method, attack, defence in itertools.product(
        asked.clients, asked.methods, asked.attacks, asked.defences
    ):
        point = {"clients": clients, "method": method, "attack": attack, "defence": defence}
        if point in known or (clients == 4 and "krum" in defence):
            continue  # Krum needs five clients where one may lie
        liars = {f"code-{place}" for place in range(clients // 4)}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = poisoned(attack, catalog.load("code", "train", lambda _: None))
            lines = (json.dumps({"instruction": e.instruction, "response": e.response}) for e in rows)
            (folder / "poisoned.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            recipe = recipe_of(method, clients, attack, defence, liars, folder)
            row = {"point": point, **run(recipe, attack, liars, folder, assets)}
            shutil.rmtree(folder / "run", ignore_errors=True)
        stored["rows"].append(row)
        asked.store.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""What does FedSRD cost end to end, and does training keep pace with a bare PEFT loop?"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import Result

from fedsrd import recipe as recipes
from fedsrd.core.local_plan import LocalPlan
from fedsrd.data import catalog
from fedsrd.data.prompt import Encoded, encode
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord
from fedsrd.training.models import AdaptedModel, lora_config
from fedsrd.training.options import BaseOptions
from fedsrd.training.sft import LocalTrainer

PHASES = ("train", "sparsify", "encode", "decode", "server", "broadcast", "apply")


class _Silent:
    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        pass

    def round_done(self, record: RoundRecord) -> None:
        pass


def run(quick: bool) -> Result:
    """A run of each method on the embedded default, in turn; seconds a round by phase, four clients together."""
    rounds, repeats = (1, 1) if quick else (2, 2)
    seconds: dict[str, list[dict[str, float]]] = {"fedavg": [], "fedsrd-e": [], "fedsrd": []}
    for _ in range(repeats):
        for method, found in seconds.items():
            found += _run(method, rounds, steps=1 if quick else 4)
    result = Result(
        "A round of the embedded default, seconds of all four clients and the server (medians)",
        ["method", *PHASES, "all", "all but training", "round at equal training, x FedAvg"],
        notes=[
            "Training is the same work for every method, and its time varies by more than all the rest takes; the last "
            "column gives every method the median training time of all runs."
        ],
    )
    train = statistics.median(row["train"] for rows in seconds.values() for row in rows)
    rest = {}
    for method, rows in seconds.items():
        medians = [statistics.median(row[phase] for row in rows) for phase in PHASES]
        rest[method] = sum(medians[1:])
        ratio = (train + rest[method]) / (train + rest["fedavg"])
        result.rows.append([method, *medians, sum(medians), rest[method], ratio])
    return result


def _run(method: str, rounds: int, steps: int) -> list[dict[str, float]]:
    chosen = recipes.load(
        None,
        [
            f'method={{name="{method}"}}',
            f"rounds={rounds}",
            f"training.steps={steps}",
            "evaluation.examples=1",
            "evaluation.benchmarks=[]",
            "evaluation.samples=0",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        prepared = setup.prepare(chosen, RunFolder(Path(folder, "run")), resume=False, observer=_Silent())
        local.run(prepared, _Silent())
        records = prepared.folder.records()
    return [record.seconds for record in records[1:]]


def run_training(quick: bool) -> Result:
    """Tokens a second of our local training and of a bare PEFT loop on the same batches."""
    chosen = recipes.load(None)
    training = chosen.training
    steps = 2 if quick else 8
    lora = lora_config(chosen.lora.rank, chosen.lora.alpha, 0.0, "all-linear")
    adapted = AdaptedModel.load(chosen.model.id, lora, BaseOptions(device="cpu"))
    raw = catalog.load("medical", "train")[:200]
    examples = [encode(example, training.prompt, adapted.tokenizer, training.max_length) for example in raw]
    options = training.model_copy(update={"steps": steps, "accumulation": 1, "weight_decay": 0.0, "max_grad_norm": 1.0})
    start = adapted.tensors()
    everything = LocalPlan(start, tuple(start))
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(2 if quick else 4):
        began = time.perf_counter()
        LocalTrainer(adapted, examples, options, "c", 0).train(everything, 1, lambda step, loss: None)
        middle = time.perf_counter()
        adapted.set_tensors(start)
        _bare_loop(adapted, examples, steps, training.batch_size, training.learning_rate)
        if repeat:
            seconds["ours"].append(middle - began)
            seconds["bare"].append(time.perf_counter() - middle)
    tokens = sum(len(e.prompt) + len(e.response) for e in examples[: steps * training.batch_size])
    ours, bare = (statistics.median(found) for found in seconds.values())
    return Result(
        "Local training on the embedded default, against a bare PEFT loop",
        ["about tokens", "ours tokens/s", "bare tokens/s", "ours / bare"],
        [[tokens, tokens / ours, tokens / bare, bare / ours]],
        ["Bare: right padding, labels, the model's own loss over all logits, AdamW, clipping; as many rows."],
    )


def _bare_loop(adapted: AdaptedModel, examples: list[Encoded], steps: int, batch_size: int, rate: float) -> None:
    model: Any = adapted.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    model.train()
    pad = adapted.tokenizer.eos_token_id
    for step in range(steps):
        chosen = examples[step * batch_size : (step + 1) * batch_size]
        longest = max(len(example.prompt) + len(example.response) for example in chosen)
        ids = torch.full((len(chosen), longest), pad)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, example in enumerate(chosen):
            start, size = len(example.prompt), len(example.prompt) + len(example.response)
            ids[row, :size] = torch.tensor(example.prompt + example.response)
            labels[row, start:size] = ids[row, start:size]
            mask[row, :size] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

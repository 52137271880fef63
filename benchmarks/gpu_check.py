"""The paper's computation-time table at Llama-3.2-3B shapes with random weights: seconds by phase, memory, bytes.

    python benchmarks/gpu_check.py [--store benchmarks/results]

Nothing is downloaded. With a GPU: the paper's setting (28 layers, rank 64, 4 clients in turn, 512 tokens, 10 steps of
4 x 8 sequences). Without one: 2 layers and little work, which shows that it runs and what the phases beside training
cost at these widths; its ratios to FedAvg say nothing about the paper's, for training shrinks and they do not.
"""

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import Result, machine, show

from fedsrd.core.tensors import TensorTable
from fedsrd.data.prompt import Encoded
from fedsrd.federation.client import Client
from fedsrd.federation.local import LocalEngine
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.server import Server
from fedsrd.federation.setup import method_of
from fedsrd.federation.transition import FederationConfig
from fedsrd.planning import architecture, memory
from fedsrd.recipe import ParticipationSection
from fedsrd.training.loading import pick_device
from fedsrd.training.models import AdaptedModel, lora_config
from fedsrd.training.options import TrainingOptions
from fedsrd.training.quiet import quiet_libraries
from fedsrd.training.sft import LocalTrainer
from fedsrd.wire import WireOptions

FACTS = "planning/facts/llama-3.2-3b"
PHASES = ("train", "sparsify", "encode", "decode", "server", "broadcast", "apply")
PAPER = {"fedavg": 1.0, "fedsrd-e": 1.09, "fedsrd": 4.1}
"""Times a round of FedAvg: arXiv 2510.04601, its table of computation time (1.92, 2.10 and 7.92 minutes)."""
GIB = 1 << 30


def main() -> None:
    """Runs every method for some rounds and prints the table."""
    given = _arguments()
    place = pick_device(given.device)
    adapted = _model(given, place)
    table = TensorTable.of(adapted.tensors())
    result = Result(
        f"Llama-3.2-3B's widths, {given.layers} of 28 layers, rank {given.rank}, {given.clients} clients in turn, "
        f"{given.length} tokens, on {_name(place)}: seconds a round (medians)",
        ["method", *PHASES, "all", "x FedAvg", "paper", "up MiB", "down MiB"],
        notes=[_conditions(given, place)],
    )
    found = {method: _run(method, given, adapted, table) for method in given.methods}
    train = statistics.median(value for seconds, _, _ in found.values() for value in seconds["train"])
    whole: dict[str, float] = {}
    for method, (seconds, up, down) in found.items():
        medians = [train if phase == "train" else statistics.median(seconds[phase]) for phase in PHASES]
        whole[method] = sum(medians)
        ratio = whole[method] / whole["fedavg"] if "fedavg" in whole else float("nan")
        paper = PAPER.get(method, "-")
        result.rows.append([method, *medians, whole[method], ratio, paper, up / (1 << 20), down / (1 << 20)])
    result.notes.append(
        "Training is the same work for every method; each line has the median of all. Medians over the rounds after "
        "the first, all clients and the server added up."
    )
    result.notes.append(_memory(given, place))
    command = f"python benchmarks/gpu_check.py {' '.join(sys.argv[1:])}".strip()
    show("gpu-check" if place.type == "cuda" else "gpu-check-cpu", result, command, given.store)
    if place.type == "cuda":
        print(json.dumps({**machine(), "gpu": _name(place)}))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layers", type=int, default=28 if gpu else 2)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10 if gpu else 1)
    parser.add_argument("--batch", type=int, default=8 if gpu else 1)
    parser.add_argument("--accumulation", type=int, default=4 if gpu else 1)
    parser.add_argument("--length", type=int, default=512 if gpu else 64)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(PAPER))
    parser.add_argument("--values", default="float32", help="number type of what travels")
    parser.add_argument("--store", type=Path, help="folder for the JSON; without it nothing is stored")
    return parser.parse_args()


def _model(given: Any, place: torch.device) -> AdaptedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    with resources.as_file(resources.files("fedsrd").joinpath(FACTS)) as folder:
        config = AutoConfig.from_pretrained(folder, num_hidden_layers=given.layers)
    torch.manual_seed(0)
    with quiet_libraries(), torch.device(place):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if given.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = lora_config(given.rank, 2 * given.rank, 0.05, "all-linear")
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    return AdaptedModel.attach(model, tokenizer, lora, "Llama-3.2-3B, random weights")


def _run(
    name: str, given: Any, adapted: AdaptedModel, table: TensorTable
) -> tuple[dict[str, list[float]], float, float]:
    """Seconds of each phase in every round but the first; a client's bytes up and down a round, the mean."""
    method = method_of({"name": name})
    wire = WireOptions(values=given.values)
    config = FederationConfig(method, table, 0, wire, wire)
    options = TrainingOptions(
        steps=given.steps,
        batch_size=given.batch,
        accumulation=given.accumulation,
        learning_rate=2e-5,
        packing=given.packing,
    )
    names = [f"client-{place}" for place in range(given.clients)]
    server = Server(config, ranks=dict.fromkeys(names))
    clients = [
        Client(name, config, LocalTrainer(adapted, _examples(given, place), options, name, 0))
        for place, name in enumerate(names)
    ]
    session: Any = SimpleNamespace(on_step=lambda number, client: lambda step, loss: None)
    rounds = Rounds(server, LocalEngine(clients, session), ParticipationSection(), 0, print)
    start = server.start()
    for client in clients:
        client.start(start)
    rounds.at_newest(names)
    done = [rounds.one_round() for _ in range(given.rounds)]
    print(f"{name}: {[round(sum(one.seconds.values()), 1) for one in done]} s a round", flush=True)
    later = done[1:] or done
    up = statistics.mean(len(update.payload) for one in later for update in one.closed.accepted)
    down = statistics.mean(size for one in later for size in one.bytes_down.values())
    return {phase: [one.seconds[phase] for one in later] for phase in PHASES}, up, down


def _examples(given: Any, place: int) -> Sequence[Encoded]:
    tokens = np.random.default_rng(place).integers(5, 100_000, (64, given.length)).tolist()
    half = given.length // 2
    return [Encoded(row[:half], row[half:]) for row in tokens]


def _memory(given: Any, place: torch.device) -> str:
    empty = architecture.architecture("meta-llama/Llama-3.2-3B", given.rank, "all-linear")
    if given.layers != empty.layers:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        return f"Peak resident memory of the whole process, model and server: {peak:.1f} GiB."
    plan = memory.client(empty, "bfloat16", given.batch, given.length, checkpointing=given.checkpointing)
    peak = torch.cuda.max_memory_allocated(place) / GIB
    return f"Peak memory on the device: {peak:.1f} GiB; `fedsrd plan` estimates {plan.total / GIB:.1f} GiB."


def _conditions(given: Any, place: torch.device) -> str:
    kind = "" if place.type == "cuda" else "REDUCED, on a CPU: not the paper's table. "
    return (
        f"{kind}{given.steps} steps of {given.accumulation} x {given.batch} sequences a client and round, random "
        f"weights and tokens, values {given.values}; paper: 10 x 4 x 8."
    )


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "a CPU"


if __name__ == "__main__":
    main()

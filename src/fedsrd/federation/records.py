"""What a run writes about itself (`runs.records`): one record a round, and the summary of all."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedsrd.core import lora
from fedsrd.core.tensors import TensorTable
from fedsrd.federation.rounds import Round
from fedsrd.federation.server import Counts
from fedsrd.federation.setup import noise_of
from fedsrd.means import domain_means, mean
from fedsrd.privacy.accounting import Event, epsilon
from fedsrd.privacy.distributed import DistributedNoise
from fedsrd.privacy.noise import epsilon as of_concentrated
from fedsrd.recipe import Recipe
from fedsrd.runs.records import Guarantee, Quality, RoundRecord, Summary


def group_of(module: str) -> str:
    """The group of a module: the last part of its name, such as q_proj, which all layers share."""
    return module.rpartition(".")[2]


def layer_of(module: str) -> str:
    """The layer of a module: the first number in its name, such as 11 of model.layers.11.mlp.up_proj; "-" where there
    is none.
    """
    return next((part for part in module.split(".") if part.isdecimal()), "-")


def density(deltas: Iterable[Counts], table: TensorTable, part: Callable[[str], str] = group_of) -> dict[str, float]:
    """Share of elements that travel, by part of the model and factor (such as "q_proj.B"), the mean over the deltas.

    Parts of which nothing travels are left out.
    """
    sent: dict[str, int] = {}
    whole: dict[str, int] = {}
    for delta in deltas:
        for spec in table.specs:
            module, factor = lora.split(spec.name)
            key = part(module) if factor is None else f"{part(module)}.{factor}"
            whole[key] = whole.get(key, 0) + spec.elements
            if spec.name in delta:
                sent[key] = sent.get(key, 0) + delta[spec.name]
    return {key: round(count / whole[key], 6) for key, count in sent.items()}


def start_record(
    start_bytes: int, clients: Sequence[str], state_digest: str, quality: Mapping[str, Any]
) -> RoundRecord:
    """Round 0: the start that every client got, and the base model's quality."""
    return RoundRecord(
        round=0,
        digest=state_digest,
        bytes_up={},
        bytes_down=dict.fromkeys(clients, start_bytes),
        **quality,
    )


def round_record(
    done: Round, table: TensorTable, seconds: Mapping[str, float], quality: Mapping[str, Any]
) -> RoundRecord:
    """One round's object in rounds.jsonl. Bytes are lengths of real payloads; seconds are summed over clients."""
    closed = done.closed
    losses = {u.client: math.nan if u.loss is None else round(u.loss, 6) for u in closed.accepted}
    told = mean(loss for loss in losses.values() if math.isfinite(loss))
    promised = {
        u.client: Guarantee(epsilon=round(u.epsilon, 6), delta=u.delta)
        for u in closed.accepted
        if u.epsilon is not None and u.delta is not None
    }
    private: dict[str, Any] = {"privacy": promised} if promised else {}
    moved = sorted({factor for name in closed.downlink if (factor := lora.split(name)[1])})
    return RoundRecord(
        round=closed.broadcast.round,
        digest=closed.broadcast.digest,
        factor_down="".join(reversed(moved)),
        bytes_up=done.bytes_up,
        bytes_down=done.bytes_down,
        density_up=density(closed.uplinks, table),
        density_up_by_layer=density(closed.uplinks, table, layer_of),
        density_down=density([closed.downlink], table),
        seconds={phase: round(value, 4) for phase, value in seconds.items()},
        train_loss=math.nan if told is None else told,
        train_loss_by_client=losses,
        rejected={failure.client: failure.reason for failure in closed.rejected},
        attempts=done.attempts,
        **private,
        **quality,
    )


def summarise(recipe: Recipe, table: TensorTable, records: Sequence[RoundRecord]) -> Summary:
    """The content of summary.json.

    Ratios compare all bytes, up and down, with sending every LoRA parameter both ways to every client that took part in
    a round.
    """
    up = sum(sum(record.bytes_up.values()) for record in records)
    down = sum(sum(record.bytes_down.values()) for record in records)
    values = 2 * table.elements * sum(len(record.bytes_up) for record in records)
    measured = [record for record in records if record.eval]
    sets = {entry.name: entry.in_domain for entry in recipe.evaluation.sets}

    def averages(record: RoundRecord) -> Quality:
        means = domain_means(record.eval, sets)
        found = Quality(by_set=record.eval, in_domain=means.in_domain, out_of_domain=means.out_of_domain)
        return found.model_copy(update={"stderr": record.eval_stderr}) if record.eval_stderr else found

    benchmarks = [record.benchmarks for record in records if record.benchmarks]
    phases: dict[str, float] = {}
    for record in records:
        for phase, value in record.seconds.items():
            phases[phase] = round(phases.get(phase, 0.0) + value, 4)
    promised = {name: found for record in records for name, found in record.privacy.items()}
    private: dict[str, Any] = {"privacy": promised} if promised else {}
    private |= of_clients(recipe, len(records) - 1, table.elements)
    return Summary(
        name=recipe.name,
        method=recipe.method["name"],
        seed=recipe.seed,
        rounds=len(records) - 1,
        clients=len({name for record in records for name in (*record.bytes_down, *record.bytes_up)}),
        parameters=table.elements,
        bytes_up=up,
        bytes_down=down,
        ratio_to_dense_float32=(up + down) / (4 * values) if values else None,
        ratio_to_dense_bfloat16=(up + down) / (2 * values) if values else None,
        seconds=phases,
        metric="response NLL, nats a token",
        base=averages(measured[0]) if measured else None,
        final=averages(measured[-1]) if measured else None,
        benchmarks={"base": benchmarks[0], "final": benchmarks[-1]} if len(benchmarks) > 1 else {},
        digest=records[-1].digest,
        **private,
    )


def of_clients(recipe: Recipe, rounds: int, elements: int) -> dict[str, Guarantee]:
    """What so many rounds have given away of each client as a whole, as a record's field; nothing where nothing is
    promised. Who is asked follows from a seed that all know, so nothing is gained by not being asked.

    Args:
        recipe: the recipe.
        rounds: that have closed.
        elements: that travel in a round at most.
    """
    asked, shared = recipe.privacy.clients, noise_of(recipe)
    if asked is None:
        return {}
    if shared is None or recipe.summed is None:
        event = Event(noise_multiplier=asked.noise_multiplier, sampling_rate=1.0, steps=rounds)
        found = epsilon([event], asked.delta)
    else:
        noise = DistributedNoise(
            asked.noise_multiplier, asked.clip, recipe.summed.levels, shared[1], len(recipe.clients), elements
        )
        found = of_concentrated(rounds * noise.rho, asked.delta) if rounds else 0.0
    return {"privacy_of_clients": Guarantee(epsilon=round(found, 6), delta=asked.delta)}

"""From run folders to the numbers of the tables and figures. Nothing here computes on a model."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsrd import methods
from fedsrd.compare.plan import Comparison, Point, Run, VariantSection, slug
from fedsrd.evaluation import embedded
from fedsrd.means import domain_means, mean
from fedsrd.recipe import Recipe
from fedsrd.runs.folder import RunFolder

Record = dict[str, Any]
FAILED = "failed.txt"
ENOUGH = 0.9
"""Share of the best federated variant's gain that "bytes to reach" asks for."""
SECONDS = {
    "train": ("train",),
    "sparsify": ("sparsify",),
    "encode": ("encode",),
    "server": ("server",),
    "decode": ("decode", "broadcast", "apply"),
}
"""Phases of the table, and those of rounds.jsonl that each adds up. Broadcasting is encoding, decoding and adding."""


@dataclass(frozen=True)
class Curve:
    """One finished run.

    Attributes:
        seed: its seed.
        rounds: the evaluated rounds.
        in_domain: mean response NLL of the in-domain sets after each.
        own: the same of every client's model on its own set; equal to `in_domain` where there is one global model.
        out_of_domain: mean of the other sets; None where there are none.
        by_set: final NLL of each set.
        base: NLL of each set before the first round.
        benchmarks: the embedded suite's rows before ("base") and after ("final"); empty where none were asked for.
        bytes_up: all clients' uplink bytes so far, after each evaluated round.
        bytes_down: likewise down.
        seconds: by phase, the mean round.
        density: uplink density by layer and factor, the mean round.
    """

    seed: int
    rounds: list[int]
    in_domain: list[float]
    own: list[float]
    out_of_domain: list[float | None]
    by_set: dict[str, float]
    base: dict[str, float]
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: dict[str, float]
    density: dict[str, float]
    benchmarks: dict[str, Record]


def read_curve(run: Run, folder: Path) -> Curve:
    """A finished run's numbers from its rounds.jsonl."""
    records = RunFolder(folder).records()
    sets = _sets(run.recipe)
    inside = [name for name, in_domain in sets.items() if in_domain]
    owners = [entry.name for entry in run.recipe.clients if entry.name in inside] or inside
    curve = Curve(run.seed, [], [], [], [], {}, {}, [], [], {}, {}, {})
    up = down = 0
    for record in records:
        up += sum(record.bytes_up.values())
        down += sum(record.bytes_down.values())
        if record.benchmarks:
            curve.benchmarks["final" if record.round else "base"] = record.benchmarks
        quality = record.eval
        if not quality:
            continue
        by_client = record.eval_by_client
        means = domain_means(quality, sets)
        curve.rounds.append(record.round)
        curve.in_domain.append(_known(means.in_domain))
        curve.own.append(_mean(by_client.get(name, quality)[name] for name in owners))
        curve.out_of_domain.append(means.out_of_domain)
        curve.bytes_up.append(up)
        curve.bytes_down.append(down)
        (curve.by_set if record.round else curve.base).update(quality)
    rounds = records[1:]
    for phase, parts in SECONDS.items():
        curve.seconds[phase] = _mean(sum(record.seconds[part] for part in parts) for record in rounds)
    for key in rounds[0].density_up_by_layer if rounds else ():
        curve.density[key] = _mean(record.density_up_by_layer.get(key, 0.0) for record in rounds)
    return curve


def search(comparison: Comparison, variant: VariantSection, out: Path) -> dict[Point, float] | None:
    """The score of every point of a variant's grid: the mean final NLL over the grid's seeds, each client's model on
    its own set; infinite where a run failed. None while a run is missing.
    """
    scores: dict[Point, list[float]] = {}
    for run in comparison.searches(variant):
        folder = run.folder(out)
        if RunFolder(folder).complete:
            score = read_curve(run, folder).own[-1]
        elif (folder / FAILED).is_file():
            score = float("inf")
        else:
            return None
        scores.setdefault(run.point, []).append(score)
    return {point: _mean(found) for point, found in scores.items()}


def chosen(comparison: Comparison, variant: VariantSection, out: Path) -> Point | None:
    """The best point of a variant's grid; None while it is not known."""
    points = comparison.points(variant)
    if len(points) == 1:
        return points[0]
    return _best(search(comparison, variant, out))


def _best(scores: Mapping[Point, float] | None) -> Point | None:
    return None if scores is None else min(scores, key=lambda point: scores[point])


def collect(comparison: Comparison, out: Path) -> Record:
    """All results of a comparison as plain data: what results.json holds and tables and figures are made of."""
    rows = []
    for variant in comparison.variants:
        points = comparison.points(variant)
        scores = search(comparison, variant, out) if len(points) > 1 else None
        point = points[0] if len(points) == 1 else _best(scores)
        curves, failed = [], []
        for run in comparison.finals(variant, point) if point is not None else []:
            folder = run.folder(out)
            if RunFolder(folder).complete:
                curves.append(read_curve(run, folder))
            elif (folder / FAILED).is_file():
                failed.append({"seed": run.seed, "reason": (folder / FAILED).read_text(encoding="utf-8").strip()})
        rows.append(_row(comparison, variant, point, curves, failed, scores))
    target = _target(rows)
    for row in rows:
        row["bytes_to_target"] = _spread([_bytes_to(curve, target) for curve in row["curves"]]) if target else None
    return {
        "name": comparison.name,
        "seeds": list(comparison.seeds),
        "grid_seeds": list(comparison.grid_seeds),
        "target": target,
        "rows": rows,
    }


def _row(
    comparison: Comparison,
    variant: VariantSection,
    point: Point | None,
    curves: Sequence[Curve],
    failed: list[Record],
    scores: Mapping[Point, float] | None,
) -> Record:
    method = methods.get(variant.method["name"])
    recipe = comparison.run(variant, comparison.points(variant)[0], comparison.seeds[0]).recipe
    last = [curve.rounds[-1] for curve in curves]
    return {
        "label": variant.label,
        "method": method.name,
        "reference": method.reference,
        "personal": method.personal,
        "point": dict(point) if point is not None else None,
        "search": {slug(where): _finite(score) for where, score in scores.items()} if scores else {},
        "runs": len(curves),
        "failed": failed,
        "clients": 1 if method.pooled else len(recipe.clients),
        "base": _spread([domain_means(curve.base, _sets(recipe)).in_domain for curve in curves]),
        "by_set": {name: _spread([curve.by_set[name] for curve in curves]) for name in _names(curves)},
        "in_domain": _spread([curve.in_domain[-1] for curve in curves]),
        "own": _spread([curve.own[-1] for curve in curves]),
        "out_of_domain": _spread([curve.out_of_domain[-1] for curve in curves]),
        "bytes_up": _spread([curve.bytes_up[-1] for curve in curves]),
        "bytes_down": _spread([curve.bytes_down[-1] for curve in curves]),
        "rounds": max(last, default=0),
        "seconds": {phase: _spread([curve.seconds[phase] for curve in curves]) for phase in SECONDS} if curves else {},
        "benchmarks": _benchmarks(curves),
        "curves": [vars(curve) for curve in curves],
    }


def _benchmarks(curves: Sequence[Curve]) -> Record:
    """Every benchmark's score over the seeds, with the base model's and the questions' own standard error."""
    if not curves or not all("final" in curve.benchmarks and "base" in curve.benchmarks for curve in curves):
        return {}
    found = {}
    for name, row in curves[0].benchmarks["base"].items():
        what = embedded.named(name)
        base, scores = embedded.score(what, row), [embedded.score(what, c.benchmarks["final"][name]) for c in curves]
        spread = _spread([score.value for score in scores])
        found[name] = {
            "unit": base.unit,
            "title": base.title,
            "base": base.value,
            "stderr": scores[0].stderr,
            "after": spread,
        }
    return found


def _finite(score: float) -> float | None:
    # JSON has no infinity; None is a run that failed.
    return score if math.isfinite(score) else None


def _sets(recipe: Recipe) -> dict[str, bool]:
    """Evaluation sets by name: whether each is in domain."""
    return {entry.name: entry.in_domain for entry in recipe.evaluation.sets}


def _names(curves: Sequence[Curve]) -> list[str]:
    return list(curves[0].by_set) if curves else []


def _target(rows: Sequence[Record]) -> float | None:
    """The in-domain NLL that "bytes to reach" asks for: most of the best federated row's gain over the base."""
    reached = [row for row in rows if row["runs"] and not row["reference"] and not row["personal"]]
    if not reached:
        return None
    best: float = min(row["in_domain"]["mean"] for row in reached)
    base: float = reached[0]["base"]["mean"]
    return base - ENOUGH * (base - best)


def _bytes_to(curve: Record, target: float) -> float | None:
    """Bytes, up and down, at which a run's in-domain NLL came to the target, between evaluated rounds by straight line;
    None where it did not.
    """
    totals: list[float] = [up + down for up, down in zip(curve["bytes_up"], curve["bytes_down"], strict=True)]
    for place in range(1, len(totals)):
        before, after = curve["in_domain"][place - 1 : place + 1]
        if after <= target < before:
            part: float = (before - target) / (before - after)
            return totals[place - 1] + part * (totals[place] - totals[place - 1])
    return None


def _spread(values: Sequence[float | None]) -> Record | None:
    """Mean and sample standard deviation; None where a value is missing."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return {"mean": _mean(found), "sd": statistics.stdev(found) if len(found) > 1 else None, "n": len(found)}


def _mean(values: Iterable[float]) -> float:
    return _known(mean(values))


def _known(value: float | None) -> float:
    # `compare.plan.load` refuses a comparison without a set in domain, and every run has a round.
    assert value is not None
    return value

"""From run folders to the numbers of the tables and figures. Nothing here computes on a model."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from fedsrd import methods
from fedsrd.compare.plan import Comparison, Point, Run, VariantSection, slug
from fedsrd.evaluation import embedded
from fedsrd.means import domain_means, mean
from fedsrd.recipe import Recipe
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.results import BenchmarkRow, Curve, Failure, Results, Row, Spread

FAILED = "failed.txt"
DIVERGED = "the model diverged: its NLL is no finite number (learning rate too high?)"
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


def read_curve(run: Run, folder: Path) -> Curve | None:
    """A finished run's numbers from its rounds.jsonl; None where its model diverged: an NLL is no number."""
    records = RunFolder(folder).records()
    sets = _sets(run.recipe)
    inside = [name for name, in_domain in sets.items() if in_domain]
    owners = [entry.name for entry in run.recipe.clients if entry.name in inside] or inside
    measured = [record for record in records if record.eval]
    found = (quality for record in measured for quality in (record.eval, *record.eval_by_client.values()))
    if not all(math.isfinite(value) for quality in found for value in quality.values()):
        return None
    means = [domain_means(record.eval, sets) for record in measured]
    up = list(accumulate(sum(record.bytes_up.values()) for record in records))
    down = list(accumulate(sum(record.bytes_down.values()) for record in records))
    after = records[1:]
    layers = after[0].density_up_by_layer if after else ()
    return Curve(
        seed=run.seed,
        rounds=[record.round for record in measured],
        in_domain=[_known(found.in_domain) for found in means],
        own=[_mean([record.eval_by_client.get(n, record.eval)[n] for n in owners]) for record in measured],
        out_of_domain=[found.out_of_domain for found in means],
        by_set={name: value for record in measured if record.round for name, value in record.eval.items()},
        base={name: value for record in measured if not record.round for name, value in record.eval.items()},
        bytes_up=[up[record.round] for record in measured],
        bytes_down=[down[record.round] for record in measured],
        seconds={
            phase: _mean([sum(record.seconds[part] for part in parts) for record in after])
            for phase, parts in SECONDS.items()
        },
        density={key: _mean([record.density_up_by_layer.get(key, 0.0) for record in after]) for key in layers},
        benchmarks={"final" if r.round else "base": r.benchmarks for r in records if r.benchmarks},
    )


def search(comparison: Comparison, variant: VariantSection, out: Path) -> dict[Point, float] | None:
    """The score of every point of a variant's grid: the mean final NLL over the grid's seeds, each client's model on
    its own set; infinite where a run failed. None while a run is missing.
    """
    scores: dict[Point, list[float]] = {}
    for run in comparison.searches(variant):
        folder = run.folder(out)
        if RunFolder(folder).complete:
            curve = read_curve(run, folder)
            score = curve.own[-1] if curve else float("inf")
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


def collect(comparison: Comparison, out: Path) -> Results:
    """All results of a comparison: what results.json holds and tables and figures are made of."""
    rows = []
    for variant in comparison.variants:
        points = comparison.points(variant)
        scores = search(comparison, variant, out) if len(points) > 1 else None
        point = points[0] if len(points) == 1 else _best(scores)
        curves, failed = [], []
        for run in comparison.finals(variant, point) if point is not None else []:
            folder = run.folder(out)
            if RunFolder(folder).complete:
                curve = read_curve(run, folder)
                if curve:
                    curves.append(curve)
                else:
                    failed.append(Failure(seed=run.seed, reason=DIVERGED))
            elif (folder / FAILED).is_file():
                reason = (folder / FAILED).read_text(encoding="utf-8").strip()
                failed.append(Failure(seed=run.seed, reason=reason))
        rows.append(_row(comparison, variant, point, curves, failed, scores))
    target = _target(rows)
    return Results(
        name=comparison.name,
        seeds=list(comparison.seeds),
        grid_seeds=list(comparison.grid_seeds),
        target=target,
        rows=[row.model_copy(update={"bytes_to_target": _to_target(row, target)}) for row in rows],
    )


def _to_target(row: Row, target: float | None) -> Spread | None:
    return _spread([_bytes_to(curve, target) for curve in row.curves]) if target else None


def _row(
    comparison: Comparison,
    variant: VariantSection,
    point: Point | None,
    curves: Sequence[Curve],
    failed: list[Failure],
    scores: Mapping[Point, float] | None,
) -> Row:
    method = methods.get(variant.method["name"])
    recipe = comparison.run(variant, comparison.points(variant)[0], comparison.seeds[0]).recipe
    last = [curve.rounds[-1] for curve in curves]
    return Row(
        label=variant.label,
        method=method.name,
        reference=method.reference,
        personal=method.personal,
        point=dict(point) if point is not None else None,
        search={slug(where): _finite(score) for where, score in scores.items()} if scores else {},
        runs=len(curves),
        failed=failed,
        clients=1 if method.pooled else len(recipe.clients),
        base=_spread([domain_means(curve.base, _sets(recipe)).in_domain for curve in curves]),
        by_set={name: _spread([curve.by_set[name] for curve in curves]) for name in _names(curves)},
        in_domain=_spread([curve.in_domain[-1] for curve in curves]),
        own=_spread([curve.own[-1] for curve in curves]),
        out_of_domain=_spread([curve.out_of_domain[-1] for curve in curves]),
        bytes_up=_spread([curve.bytes_up[-1] for curve in curves]),
        bytes_down=_spread([curve.bytes_down[-1] for curve in curves]),
        rounds=max(last, default=0),
        seconds={phase: _spread([curve.seconds[phase] for curve in curves]) for phase in SECONDS} if curves else {},
        benchmarks=_benchmarks(curves),
        curves=list(curves),
    )


def _benchmarks(curves: Sequence[Curve]) -> dict[str, BenchmarkRow]:
    """Every benchmark's score over the seeds, with the base model's and the questions' own standard error."""
    if not curves or not all("final" in curve.benchmarks and "base" in curve.benchmarks for curve in curves):
        return {}
    found = {}
    for name, row in curves[0].benchmarks["base"].items():
        what = embedded.named(name)
        base, scores = embedded.score(what, row), [embedded.score(what, c.benchmarks["final"][name]) for c in curves]
        spread = _spread([score.value for score in scores])
        found[name] = BenchmarkRow(
            unit=base.unit, title=base.title, base=base.value, stderr=scores[0].stderr, after=spread
        )
    return found


def _finite(score: float) -> float | None:
    # JSON has no infinity; None is a run that failed.
    return score if math.isfinite(score) else None


def _sets(recipe: Recipe) -> dict[str, bool]:
    """Evaluation sets by name: whether each is in domain."""
    return {entry.name: entry.in_domain for entry in recipe.evaluation.sets}


def _names(curves: Sequence[Curve]) -> list[str]:
    return list(curves[0].by_set) if curves else []


def _target(rows: Sequence[Row]) -> float | None:
    """The in-domain NLL that "bytes to reach" asks for: most of the best federated row's gain over the base."""
    reached = [row for row in rows if row.in_domain and row.base and not row.reference and not row.personal]
    if not reached:
        return None
    best = min(row.in_domain.mean for row in reached if row.in_domain)
    base = next(row.base.mean for row in reached if row.base)
    return base - ENOUGH * (base - best)


def _bytes_to(curve: Curve, target: float) -> float | None:
    """Bytes, up and down, at which a run's in-domain NLL came to the target, between evaluated rounds by straight line;
    None where it did not.
    """
    totals: list[float] = [up + down for up, down in zip(curve.bytes_up, curve.bytes_down, strict=True)]
    for place in range(1, len(totals)):
        before, after = curve.in_domain[place - 1 : place + 1]
        if after <= target < before:
            part: float = (before - target) / (before - after)
            return totals[place - 1] + part * (totals[place] - totals[place - 1])
    return None


def _spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation; None where a value is missing."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return Spread(mean=_mean(found), sd=statistics.stdev(found) if len(found) > 1 else None, n=len(found))


def _mean(values: Iterable[float]) -> float:
    return _known(mean(values))


def _known(value: float | None) -> float:
    # `compare.plan.load` refuses a comparison without a set in domain, and every run has a round.
    assert value is not None
    return value

"""A run's part of the report, from what lies in its folder. Nothing here computes on a model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from markupsafe import Markup

from fedsrd.errors import RunFolderError
from fedsrd.evaluation import embedded, scores
from fedsrd.means import mean
from fedsrd.places import shown, without_folders
from fedsrd.recipe import Recipe
from fedsrd.report import terminal
from fedsrd.report.figures.figure import MIB, Axis, Chart, Heat, Level, Series, by_number
from fedsrd.report.figures.interactive import draw
from fedsrd.report.page.places import folder_name, without_places
from fedsrd.report.page.render import Plot, Table, render
from fedsrd.runs.card import public_names
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.promise import sentences
from fedsrd.runs.records import RoundRecord, Summary

ROUNDS = Axis("round", whole=True)


def read(path: Path) -> tuple[Recipe, list[RoundRecord], Summary]:
    """A complete run's recipe, records and summary.

    Raises:
        RunFolderError: there is no run, or it is not complete.
    """
    folder = RunFolder(path)
    recipe = folder.stored_recipe()
    if not folder.complete:
        raise RunFolderError(f"{path}: the run is not complete; finish it first: fedsrd run --resume --out {path}")
    return recipe, folder.records(), folder.summary()


def sections(path: Path, prefix: str) -> tuple[str, Markup]:
    """Title and HTML of a run. `prefix` makes the names of its figures unique in the page."""
    recipe, records, summary = read(path)
    rounds = records[1:]
    name, found = folder_name(path), RunFolder(path).adapters()
    adapters = [f"{name}/{adapter.relative_to(path).as_posix()}" for adapter in found]
    public = public_names(found)
    body = render(
        "run",
        recipe=recipe,
        model=shown(recipe.model.id, "model", public),
        summary=summary,
        cards=_cards(summary),
        **_plots(records, summary, prefix),
        sparsity=[
            Plot(
                f"{prefix}-sparsity-{factor}",
                draw(heat),
                f"Share of factor {factor}'s changes that clients sent, by layer and round, mean over clients.",
            )
            for factor, heat in _sparsity(rounds).items()
        ],
        quality_table=_quality_table(summary),
        benchmarks=_benchmarks(summary),
        privacy=sentences(summary),
        spent=_spent(rounds),
        bytes_table=_bytes_table(summary),
        rounds=_rounds(rounds, [recipe.model.id, *_sources(recipe), str(path)]),
        samples=_samples(records),
        adapters=adapters,
        load_adapter=_load_adapter(adapters[0]) if adapters else "",
        command=f"fedsrd run {name}/recipe.toml --out NEW-FOLDER",
        versions=Table(["what", "version"], list(recipe.environment.items())),
        recipe_text=tomli_w.dumps(without_places(recipe.resolved() | {"environment": recipe.environment}, public)),
    )
    return recipe.name, body


def _plots(records: Sequence[RoundRecord], summary: Summary, prefix: str) -> dict[str, Plot | None]:
    """The page's figures by name."""
    found = {
        "quality": (_quality(records), "Held-out response NLL by set, less is better; round 0 is the base model."),
        "loss": (_loss(records), "Training loss of each client, mean over the round."),
        "bytes": (_bytes(records[1:], summary), "Lengths of real payloads, the mean over the round's clients."),
        "seconds": (_seconds(records[1:]), "Seconds a round by phase, clients added up."),
    }
    return {
        name: Plot(f"{prefix}-{name}", draw(figure), caption) if figure else None
        for name, (figure, caption) in found.items()
    }


def _cards(summary: Summary) -> list[tuple[str, str]]:
    base, final = summary.base, summary.final
    before, after = base and base.in_domain, final and final.in_domain
    known = before is not None and after is not None
    seconds = sum(summary.seconds.values())
    whole = summary.bytes_up + summary.bytes_down
    return [
        ("in-domain NLL, before → after", f"{before:.3f} → {after:.3f}" if known else ""),
        ("sent by all, up and down", terminal.amount(whole)),
        ("of dense float32 (FedAvg)", _percent(summary.ratio_to_dense_float32)),
        ("of dense bfloat16", _percent(summary.ratio_to_dense_bfloat16)),
        ("adapter parameters", f"{summary.parameters:,}"),
        ("seconds, all clients and server", f"{seconds:,.0f}"),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _quality(records: Sequence[RoundRecord]) -> Chart | None:
    measured = [record for record in records if record.eval]
    if not measured:
        return None
    numbers = [record.round for record in measured]
    series = [Series(name, numbers, [record.eval[name] for record in measured]) for name in measured[0].eval]
    return Chart("lines", series, ROUNDS, Axis("NLL, nats a token"))


def _quality_table(summary: Summary) -> Table:
    rows = []
    if summary.base is not None and summary.final is not None:
        base, final = summary.base, summary.final
        pairs: list[tuple[str, float | None, float | None]] = [
            *((name, value, final.by_set[name]) for name, value in base.by_set.items()),
            ("mean in domain", base.in_domain, final.in_domain),
            ("mean out of domain", base.out_of_domain, final.out_of_domain),
        ]
        rows = [
            [label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
            for label, before, after in pairs
            if before is not None and after is not None
        ]
    return Table(["set", "base model", "after", "change"], rows)


def _loss(records: Sequence[RoundRecord]) -> Chart | None:
    losses: dict[str, dict[int, float]] = {}
    for record in records[1:]:
        for name, loss in record.train_loss_by_client.items():
            losses.setdefault(name, {})[record.round] = loss
    # Under privacy nobody tells one.
    if not any(math.isfinite(loss) for found in losses.values() for loss in found.values()):
        return None
    series = [Series(name, list(found), list(found.values())) for name, found in losses.items()]
    return Chart("lines", series, ROUNDS, Axis("training loss, nats a token"))


def _spent(rounds: Sequence[RoundRecord]) -> Table:
    names = sorted({name for record in rounds for name in record.privacy})
    whole = any(record.privacy_of_clients for record in rounds)
    rows = []
    for record in rounds:
        told = [record.privacy.get(name) for name in names] + [record.privacy_of_clients] * whole
        if any(told):
            rows.append([str(record.round), *("" if one is None else f"{one.epsilon:.3f}" for one in told)])
    return Table(["round", *names, *["a client as a whole"] * whole], rows)


def _benchmarks(summary: Summary) -> Table | None:
    found = summary.benchmarks
    return Table(*scores.table(embedded.before_and_after(found))) if found else None


def _bytes(rounds: Sequence[RoundRecord], summary: Summary) -> Chart | None:
    if not any(record.bytes_up for record in rounds):
        return None
    numbers = [record.round for record in rounds]
    series = [
        Series("up", numbers, [(mean(record.bytes_up.values()) or 0) / MIB for record in rounds]),
        Series("down", numbers, [(mean(record.bytes_down.values()) or 0) / MIB for record in rounds]),
    ]
    dense = 4 * summary.parameters / MIB
    levels = [Level(dense, "FedAvg each way, float32"), Level(dense * 0.5, "FedAvg, bfloat16")]
    return Chart("lines", series, ROUNDS, Axis("MiB a client, log scale", log=True), levels=levels)


def _bytes_table(summary: Summary) -> Table:
    rows = [
        ["up", terminal.amount(summary.bytes_up)],
        ["down", terminal.amount(summary.bytes_down)],
        ["FedAvg, float32, both ways", terminal.amount(_dense(summary, 1))],
        ["FedAvg, bfloat16, both ways", terminal.amount(_dense(summary, 2))],
    ]
    return Table(["all clients and rounds", "bytes"], rows)


def _dense(summary: Summary, halves: int) -> float:
    share = summary.ratio_to_dense_float32
    return (summary.bytes_up + summary.bytes_down) / share / halves if share else 0.0


def _seconds(rounds: Sequence[RoundRecord]) -> Chart | None:
    if not rounds:
        return None
    numbers = [record.round for record in rounds]
    series = [
        Series(name, numbers, [sum(record.seconds[phase] for phase in members) for record in rounds])
        for name, members in terminal.PHASES.items()
    ]
    return Chart("bars", series, Axis("round"), Axis("seconds, all clients"), stacked=True)


def _sparsity(rounds: Sequence[RoundRecord]) -> dict[str, Heat]:
    """By factor."""
    found = {}
    for factor in ("B", "A"):
        keys = [key for key in (rounds[0].density_up_by_layer if rounds else {}) if key.endswith(factor)]
        layers = sorted((key.rpartition(".")[0] for key in keys), key=by_number)
        if layers:
            values = [[_share(record, f"{layer}.{factor}") for record in rounds] for layer in layers]
            found[factor] = Heat(values, [record.round for record in rounds], layers, Axis("round"), Axis("layer"))
    return found


def _share(record: RoundRecord, key: str) -> float | None:
    value = record.density_up_by_layer.get(key)
    return None if value is None else 100 * value


def _sources(recipe: Recipe) -> list[str]:
    sections = [section for client in recipe.clients for section in client.sections]
    return [section.source for section in [*sections, *(entry.data for entry in recipe.evaluation.sets)]]


def _rounds(rounds: Sequence[RoundRecord], places: Sequence[str]) -> Table:
    rows = []
    for record in rounds:
        out = "; ".join(f"{name}: {without_folders(reason, places)}" for name, reason in record.rejected.items())
        cells = [
            str(record.round),
            str(len(record.bytes_up)),
            record.factor_down,
            str(record.attempts),
        ]
        rows.append([*cells, record.digest[:12], out or "nobody"])
    return Table(["round", "updates", "factor down", "attempts", "digest", "left out"], rows)


def _samples(records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    asked = [record.samples for record in records if record.samples]
    if len(asked) < 2:
        return []
    return [
        {
            "title": f"{name}: {one.prompt[:90]}",
            "prompt": one.prompt,
            "answers": [
                ("base model", one.answer),
                ("after", asked[-1][name][place].answer),
                ("reference", one.wanted),
            ],
        }
        for name, prompts in asked[0].items()
        for place, one in enumerate(prompts)
    ]


def _load_adapter(adapter: str) -> str:
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE")\nmodel = PeftModel.from_pretrained(base, "{adapter}")'
    )

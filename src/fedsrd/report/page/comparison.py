"""A comparison's part of the report, from its results.json."""

from pathlib import Path
from typing import Any

import tomli_w
from markupsafe import Markup

from fedsrd import toml
from fedsrd.errors import RunFolderError
from fedsrd.report import comparison as tables
from fedsrd.report.figures import comparison as figures
from fedsrd.report.figures.interactive import draw
from fedsrd.report.page.places import folder_name, texts_without_folders, without_places
from fedsrd.report.page.render import Plot, Table, render
from fedsrd.runs.results import read_results

Record = dict[str, Any]
RECIPE = "comparison.toml"


def read(path: Path) -> Record:
    """A comparison's results, plain as the tables take them. Raises RunFolderError as `runs.results.read_results`."""
    return read_results(path / "results.json").plain()


def sections(path: Path, prefix: str) -> tuple[str, Markup]:
    """Title and HTML of a comparison. `prefix` makes the names of its figures unique in the page."""
    results = texts_without_folders(read(path))
    rows = tables.ordered(results)
    body = render(
        "comparison",
        methods=len(rows),
        seeds=results["seeds"],
        **_plots(rows, prefix),
        quality_table=Table(*tables.quality_rows(results)),
        benchmarks_table=Table(*tables.benchmark_rows(results)),
        costs_table=Table(*tables.cost_rows(results)),
        sparsity=_sparsity(rows, prefix),
        failed=_failed(results),
        command=f"fedsrd compare {folder_name(path)}/{RECIPE} --out NEW-FOLDER",
        versions=Table(["what", "version"], list(results.get("environment", {}).items())),
        recipe_text=_recipe(path / RECIPE),
    )
    return results["name"], body


def _recipe(file: Path) -> str:
    if not file.is_file():
        return ""
    try:
        tree = toml.load(file)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{file}: cannot be read as TOML: {error}; put a copy in its place, or remove it"
        ) from None
    return tomli_w.dumps(without_places(tree, ()))


def _plots(rows: list[Record], prefix: str) -> dict[str, Plot | None]:
    """The page's figures by name."""
    found = {
        "pareto": (
            figures.pareto(rows),
            "Final in-domain NLL against all bytes, up and down; lower and further left is better.",
        ),
        "rounds": (figures.rounds(rows), "In-domain NLL by round, mean over seeds; round 0 is the base model."),
        "seconds": (figures.seconds(rows), "Seconds a round by phase, all clients added up."),
    }
    return {
        name: Plot(f"{prefix}-{name}", draw(figure), caption) if figure else None
        for name, (figure, caption) in found.items()
    }


def _sparsity(rows: list[Record], prefix: str) -> list[Plot]:
    return [
        Plot(
            f"{prefix}-sparsity-{factor}",
            draw(heat),
            f"Factor {factor}: how much more or less than the method's mean share (in brackets) of each layer's "
            "changes clients sent, mean over rounds.",
        )
        for factor, heat in figures.unevenness(rows).items()
    ]


def _failed(results: Record) -> Table:
    rows = [
        [row["label"], str(failure["seed"]), tables.last_line(failure["reason"])]
        for row in results["rows"]
        for failure in row["failed"]
    ]
    return Table(["method", "seed", "reason"], rows)

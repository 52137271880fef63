"""Puts the page together and writes it."""

import contextlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from fedsrd import __version__
from fedsrd.errors import RunFolderError
from fedsrd.files import write_atomically
from fedsrd.report.figures.figure import MIB, Axis, Chart, Series
from fedsrd.report.figures.interactive import draw
from fedsrd.report.page import comparison, run
from fedsrd.report.page.places import folder_name
from fedsrd.report.page.render import Plot, Section, Table, render, script


def report(paths: Sequence[Path], file: Path) -> Path:
    """Writes the report of runs and comparisons as one HTML file that works from a disk, without a network.

    Args:
        paths: folders of complete runs, and of comparisons.
        file: where to.

    Raises:
        RunFolderError: a folder holds neither, or is not complete; or the file cannot be written.
    """
    results = [_section(path, f"part{place}") for place, path in enumerate(paths)]
    runs = [path for path in paths if (path / "recipe.toml").is_file()]
    overview, figure = _overview(runs) if len(runs) > 1 else (None, None)
    page = render(
        "page",
        title=results[0].title if len(results) == 1 else f"{len(results)} results",
        results=results,
        overview=overview,
        overview_figure=figure,
        style=Markup(_part("style.css")),
        scripts=[script(_plotly()), script(_part("script.js"))],
        version=__version__,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, page.encode())
    except OSError as error:
        raise RunFolderError(f"{file}: the report cannot be written: {error.strerror}") from None
    return file


def _section(path: Path, prefix: str) -> Section:
    for file, kind in (("results.json", comparison), ("recipe.toml", run)):
        if (path / file).is_file():
            with _fitting(path):
                return Section(prefix, folder_name(path), *kind.sections(path, prefix))
    raise RunFolderError(
        f"{path}: neither a run (recipe.toml) nor a comparison (results.json); expected the folder of one"
    )


@contextlib.contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Each file was checked on its own; that they fit each other, only drawing them shows."""
    try:
        yield
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: its files are each as fedsrd writes them, but do not fit each other ({type(error).__name__}: "
            f"{str(error)[:100]}); put copies in their places, or run again into a new folder"
        ) from error


def _overview(paths: Sequence[Path]) -> tuple[Table, Plot | None]:
    """All runs side by side."""
    points, rows = [], []
    for path in paths:
        recipe, _, summary = run.read(path)
        name = folder_name(path)
        whole = (summary.bytes_up + summary.bytes_down) / MIB
        quality = summary.final.in_domain if summary.final else None
        if quality is not None and whole:
            points.append(Series(name, [whole], [quality], error=[0.0]))
        cells = [name, recipe.method["name"], str(recipe.seed), str(summary.rounds), f"{whole:.2f}"]
        rows.append([*cells, "-" if quality is None else f"{quality:.3f}"])
    table = Table(["run", "method", "seed", "rounds", "MiB", "in-domain NLL"], rows)
    if not points:
        return table, None
    chart = Chart("points", points, Axis("MiB of all clients and rounds, log scale", log=True), Axis("in-domain NLL"))
    return table, Plot("overview", draw(chart), "Final in-domain NLL against all bytes.")


def _part(name: str) -> str:
    return resources.files("fedsrd").joinpath(f"report/page/{name}").read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())

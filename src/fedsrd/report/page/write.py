"""Puts the page together and writes it."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from fedsrd import __version__
from fedsrd.errors import RunFolderError
from fedsrd.files import write_atomically
from fedsrd.report.page import charts, comparison, html, run

# No page of ours asks anybody for anything: a browser that obeys this keeps it so.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def report(paths: Sequence[Path], file: Path) -> Path:
    """Writes the report of runs and comparisons as one HTML file that works from a disk, without a network.

    Args:
        paths: folders of complete runs, and of comparisons.
        file: where to.

    Raises:
        RunFolderError: a folder holds neither, or is not complete; or the file cannot be written.
    """
    found = [(path, *_sections(path, f"part{place}")) for place, path in enumerate(paths)]
    runs = [path for path in paths if (path / "recipe.toml").is_file()]
    overview = _overview(runs) if len(runs) > 1 else ""
    title = found[0][1] if len(found) == 1 else f"{len(found)} results"
    links = "".join(f'<a href="#part{place}">{html.text(path.name)}</a>' for place, (path, _, _) in enumerate(found))
    bodies = "".join(
        f'<section id="part{place}">'
        + (f"<h2>{html.text(name)} <span class='soft'>{html.text(path)}</span></h2>" if len(found) > 1 else "")
        + f"{body}</section>"
        for place, (path, name, body) in enumerate(found)
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><title>{html.text(title)} - FedSRD</title>'
        f"<style>{_part('style.css')}</style></head><body><header><h1>{html.text(title)}</h1>"
        + (f'<p class="soft">{html.text(found[0][0])}</p>' if len(found) == 1 else "")
        + "</header>"
        + (f"<nav>{links}</nav>" if len(found) > 1 else "")
        + f"<main>{overview}{bodies}</main><footer>Written by fedsrd {__version__}.</footer>"
        f"<script>{_plotly()}</script><script>{_part('script.js')}</script></body></html>\n"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, page.encode())
    except OSError as error:
        raise RunFolderError(f"{file}: the report cannot be written: {error.strerror}") from None
    return file


def _sections(path: Path, prefix: str) -> tuple[str, str]:
    if (path / "results.json").is_file():
        return comparison.sections(path, prefix)
    if (path / "recipe.toml").is_file():
        return run.sections(path, prefix)
    raise RunFolderError(
        f"{path}: neither a run (recipe.toml) nor a comparison (results.json); expected the folder of one"
    )


def _overview(paths: Sequence[Path]) -> str:
    """All runs side by side."""
    points, rows = [], []
    for path in paths:
        recipe, _, summary = run.read(path)
        whole = (summary.bytes_up + summary.bytes_down) / charts.MIB
        quality = summary.final.in_domain if summary.final else None
        if quality is not None and whole:
            points.append((path.name, whole, quality, 0.0))
        cells = [path.name, recipe.method["name"], str(recipe.seed), str(summary.rounds), f"{whole:.2f}"]
        rows.append([*cells, "-" if quality is None else f"{quality:.3f}"])
    figure = charts.points(points, "MiB of all clients and rounds, log scale", "in-domain NLL")
    heads = ["run", "method", "seed", "rounds", "MiB", "in-domain NLL"]
    drawn = html.figure("overview", figure, "Final in-domain NLL against all bytes.") if points else ""
    return f"<h2>All runs</h2>{html.table(heads, rows)}{drawn}"


def _part(name: str) -> str:
    return resources.files("fedsrd").joinpath(f"report/page/{name}").read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())

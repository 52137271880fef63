"""The library's face: runs, comparisons and their results. `fedsrd.loop` has the codec for a loop of your own."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsrd import recipe as recipes
from fedsrd.recipe import Recipe
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Summary
from fedsrd.runs.results import Results

if TYPE_CHECKING:
    import pandas
    import pyarrow


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, or the embedded default, with `key=value` overrides on top.

    Raises:
        RecipeError: what is wrong and what to do.

    >>> load_recipe(overrides=["rounds=3"]).rounds
    3
    """
    return recipes.load(None if path is None else Path(path), overrides)


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = False, keep_payloads: bool = False, observer: Any = None
) -> "Run":
    """Runs a federation in this process, or continues one.

    Args:
        recipe: what to run (`load_recipe`).
        out: the run's folder; new or empty, unless `resume`.
        resume: continue the run in `out` after its last complete round.
        keep_payloads: keep every payload under OUT/payloads.
        observer: told how it goes (`fedsrd.federation.session.Observer`); None for silence.

    Raises:
        FedSRDError: what is wrong and what to do.
    """
    from fedsrd.federation import local, setup

    watch = observer or _Silent()
    prepared = setup.prepare(recipe, RunFolder(Path(out)), resume=resume, observer=watch)
    local.run(prepared, watch, keep_payloads=keep_payloads)
    return Run(out)


def compare_methods(
    recipe: str | Path | None,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    observer: Any = None,
) -> Results:
    """Runs many methods on equal terms; gives what results.json holds. Arguments as those of `fedsrd compare`.

    Raises:
        FedSRDError: what is wrong and what to do.
    """
    from fedsrd.compare import plan
    from fedsrd.compare import run as comparing
    from fedsrd.report import outcome

    comparison = plan.load(
        None if recipe is None else Path(recipe),
        chosen=None if methods is None else list(methods),
        seeds=None if seeds is None else list(seeds),
        rates=None if learning_rates is None else list(learning_rates),
        overrides=list(overrides),
    )
    comparing.run(comparison, Path(out), observer or _Silent(), resume=resume)
    return outcome.write(comparison, Path(out))


class Run:
    """A run's folder, opened to read.

    Args:
        path: the folder that `fedsrd run` wrote.

    Raises:
        RunFolderError: there is no run in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe: Recipe = RunFolder(self.path).stored_recipe()

    @cached_property
    def records(self) -> list[RoundRecord]:
        """The rounds, 0 first; none before the start is complete. Raises RunFolderError where the file is damaged."""
        return RunFolder(self.path).records()

    @cached_property
    def summary(self) -> Summary:
        """What summary.json holds. Raises RunFolderError where the run is not complete."""
        return RunFolder(self.path).summary()

    @property
    def adapters(self) -> list[Path]:
        """Folders of the adapters, for `PeftModel.from_pretrained`: the global one, or each client's own."""
        return RunFolder(self.path).adapters()

    def frame(self) -> "pandas.DataFrame":
        """One row a round, indexed by its number; columns such as "nll/medical", "bytes/up, mean of clients"."""
        import pandas

        from fedsrd.report.tracking import scalars

        rows = [{"round": record.round, **scalars(record, self.recipe)} for record in self.records]
        return pandas.DataFrame(rows).set_index("round")

    def arrow(self) -> "pyarrow.Table":
        """The same as an Arrow table, with "round" as a column."""
        import pyarrow

        return pyarrow.Table.from_pandas(self.frame().reset_index(), preserve_index=False)


class _Silent:
    def _nothing(self, *_: object) -> None:
        pass

    say = warn = activity = round_done = run_started = run_done = run_failed = _nothing

"""Live tracking where people look: TensorBoard, Weights & Biases, MLflow or Trackio, by accelerate's trackers."""

import importlib.util
from pathlib import Path
from typing import Any, Self

from fedsrd.errors import RecipeError
from fedsrd.means import domain_means, mean
from fedsrd.places import shown
from fedsrd.recipe import Recipe
from fedsrd.runs.records import RoundRecord

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Names of `--track`, and of the packages that they need."""


def check(names: list[str]) -> None:
    """Raises RecipeError for a tracker that is unknown, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"--track {name!r}: expected one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"--track {name}: {name} is not installed; install it with: pip install {name}")


def scalars(record: RoundRecord, recipe: Recipe) -> dict[str, float]:
    """A round's figures by name: "nll/medical", "bytes/up", "seconds/train", ..."""
    found = {f"nll/{name}": value for name, value in record.eval.items()}
    means = domain_means(record.eval, {entry.name: entry.in_domain for entry in recipe.evaluation.sets})
    averages = {
        "nll/mean in domain": means.in_domain,
        "nll/mean out of domain": means.out_of_domain,
        "bytes/up, mean of clients": mean(record.bytes_up.values()),
        "bytes/down, mean of clients": mean(record.bytes_down.values()),
    }
    found |= {name: value for name, value in averages.items() if value is not None}
    if record.train_loss is not None:
        found["loss/mean"] = record.train_loss
        found |= {f"loss/{name}": value for name, value in record.train_loss_by_client.items()}
        found["clients/left out"] = float(len(record.rejected))
        found["clients/accepted"] = float(len(record.bytes_up))
    found |= {f"seconds/{phase}": value for phase, value in record.seconds.items()}
    found |= {f"density up/{part}": value for part, value in record.density_up.items()}
    for name, row in record.benchmarks.items():
        found |= {
            f"benchmarks/{name} {key}": v for key, v in row.items() if isinstance(v, float) and "stderr" not in key
        }
    return found


class Tracked:
    """An observer that tells another one everything, and trackers the figures of every round.

    A tracker that fails is warned of and let go: a run does not end because somebody's server is away.

    Args:
        inner: the observer that is told everything.
        names: of trackers; `check` them first.
        folder: of TensorBoard's files.
    """

    def __init__(self, inner: Any, names: list[str], folder: Path) -> None:
        self._inner = inner
        self._names = names
        self._folder = folder
        self._recipe: Recipe | None = None
        self._live: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Self:
        """Enters the other observer."""
        self._inner.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        """Closes the trackers, then the other observer."""
        self.end()
        self._inner.__exit__(*reason)

    def begin(self, recipe: Recipe, name: str) -> None:
        """Opens the trackers for a run of this recipe."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.end()
        self._recipe = recipe
        for kind in self._names:
            with _Guard(self, kind):
                wanted = LOGGER_TYPE_TO_CLASS[kind]
                place = {"logging_dir": str(self._folder)} if wanted.requires_logging_directory else {}
                tracker = wanted(run_name=name, **place)
                tracker.start()
                self._live[kind] = tracker
                if kind != "tensorboard":
                    # TensorBoard would get a run of its own for them.
                    tracker.store_init_configuration(_flat(recipe.resolved()))

    def end(self) -> None:
        """Closes the trackers."""
        for kind, tracker in list(self._live.items()):
            with _Guard(self, kind):
                tracker.finish()
        self._live = {}

    def run_started(self, run: Any, place: int, count: int) -> None:
        """The next run of a comparison."""
        self._inner.run_started(run, place, count)
        self.begin(run.recipe, f"{run.label}-seed-{run.seed}")

    def round_done(self, record: RoundRecord) -> None:
        """A round's figures."""
        self._inner.round_done(record)
        if self._recipe is None:
            return
        values = scalars(record, self._recipe)
        for kind, tracker in list(self._live.items()):
            with _Guard(self, kind):
                tracker.log(values, step=record.round)

    def failed(self, kind: str, error: Exception) -> None:
        """Lets a tracker go."""
        self._live.pop(kind, None)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._inner.warn(f"{kind} is not tracked any more: {reason}")


class _Guard:
    def __init__(self, tracked: Tracked, kind: str) -> None:
        self._tracked, self._kind = tracked, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, Exception):
            self._tracked.failed(self._kind, error)
            return True
        return False


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested table as one of dotted keys and plain values. Clients' data stay out, and a model's folder: where they
    lie is nobody's business.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name == "clients":
            found[name] = ", ".join(client["name"] for client in value)
        elif name == "model.id":
            found[name] = shown(value, "model")
        elif isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        elif not isinstance(value, list):
            found[name] = value
    return found

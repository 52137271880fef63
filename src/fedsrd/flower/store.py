"""What a strategy's run goes on from, in one folder: the server's state of the last complete round, and the results."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from flwr.app import MetricRecord
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.server import Server
from fedsrd.files import own_folder, refuse_link, sweep, write_atomically
from fedsrd.text import foreign

KIND = "flower-strategy"
"""In the place of a recipe's digest: no run's folder has it."""
CONSEQUENCE = "the run cannot go on from it (put a backup in its place, or name another checkpoint folder)"
MOST_TOLD = 4

Metrics = dict[str, int | float | list[int] | list[float]]


class Noted(BaseModel):
    """A complete round's results, as far as they are known.

    Attributes:
        train: the clients' metrics of training.
        clients: of their own evaluation, if there was any.
        server: what `evaluate_fn` gave, if anything.
        measured: whether evaluation has been done.
    """

    # Metrics may be NaN, and stay so.
    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")

    train: Metrics = {}
    clients: Metrics | None = None
    server: Metrics | None = None
    measured: bool = False


class History(BaseModel):
    """What beside the state is kept.

    Attributes:
        options: what the run was started with, by dotted name.
        rounds: the results by round, round 0 first.
        settled: whether the clients have been brought to the last version.
    """

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")

    options: dict[str, Any]
    rounds: list[Noted]
    settled: bool = False


@dataclass
class Store:
    """A strategy's checkpoint.

    Args:
        folder: made where there is none; for nobody but its owner.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder = self.folder.expanduser()
        self._lock = FileLock(self.folder / ".lock", thread_local=False)

    @property
    def file(self) -> Path:
        """Replaced as a whole after every round."""
        return self.folder / "strategy.safetensors"

    def open(self, options: Mapping[str, Any]) -> tuple[Checkpoint, History] | None:
        """Claims the folder, until `close` or the process's end, and gives what is in it; None for nothing.

        Args:
            options: what must be as when the run began, by dotted name.

        Raises:
            RunFolderError: it cannot be used, another process has it, or what is in it is damaged.
            RecipeError: what is in it began with other options; the first few are named.
        """
        if not self._lock.is_locked:
            self._claim()
        if not self.file.exists():
            return None
        try:
            checkpoint = Checkpoint.load(self.file, CONSEQUENCE)
            if checkpoint.recipe != KIND:
                raise RunFolderError(f"{self.file} is not of a Flower strategy; name another checkpoint folder")
            history = History.model_validate_json(checkpoint.records)
        except ValidationError:
            raise RunFolderError(f"{self.file} is damaged, {CONSEQUENCE}") from None
        self._compare(history.options, json.loads(json.dumps(dict(options))))
        return checkpoint, history

    def save(self, server: Server, federation: str, history: History) -> None:
        """Replaces what is kept.

        Raises:
            FederationError: it cannot be written; what was there before stays.
        """
        content = Checkpoint(
            server.state,
            server.memory,
            missed=server.ledger.contents(),
            known=server.ledger.known,
            counted=server.ledger.counted,
            federation=federation,
            recipe=KIND,
            records=history.model_dump_json(),
            norms=server.history.contents(),
        ).to_bytes()
        try:
            write_atomically(self.file, content, private=True)
        except OSError as error:
            raise FederationError(
                f"checkpoint: {self.file} cannot be written: {error.strerror or error}; the round before is kept "
                "there: make room, and start again with the same arguments"
            ) from None

    def close(self) -> None:
        """Gives the folder up."""
        self._lock.release()

    def _claim(self) -> None:
        try:
            own_folder(self.folder, private=True)
            refuse_link(self.folder / ".lock")
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunFolderError(
                f"checkpoint = {str(self.folder)!r}: another process is running with it; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"checkpoint = {str(self.folder)!r} cannot be used: {error.strerror or error}; expected a folder, or a "
                "place for one"
            ) from None
        with contextlib.suppress(OSError):
            sweep(self.folder)

    def _compare(self, began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        nothing, name = "nothing", "method.name"
        if began.get(name) != now.get(name):
            # Another method has other options, which say no more.
            began, now = {name: began.get(name)}, {name: now.get(name)}
        changed = [
            f"{foreign(name, 100)} was {_shown(began.get(name, nothing))} and is {_shown(now.get(name, nothing))}"
            for name in {**began, **now}
            if began.get(name, nothing) != now.get(name, nothing)
        ]
        if changed:
            more = f" ({len(changed) - MOST_TOLD} more differ)" if len(changed) > MOST_TOLD else ""
            raise RecipeError(
                f"checkpoint = {str(self.folder)!r} is of another run: {'; '.join(changed[:MOST_TOLD])}{more}; start "
                "with what it was, or name another folder"
            )


def _shown(value: Any) -> str:
    return foreign(value if isinstance(value, str) else json.dumps(value), 60)


def kept(found: Any, where: str) -> Metrics | None:
    """The metrics that a project's own function gave, as they are kept.

    Raises:
        RecipeError: they are none of Flower's.
    """
    try:
        return None if found is None else dict(MetricRecord(dict(found)))
    except (TypeError, ValueError):
        raise RecipeError(
            f"{where} gave {foreign(repr(found), 60)}; expected a MetricRecord of numbers, or None"
        ) from None

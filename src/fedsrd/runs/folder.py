"""A run's folder: recipe, rounds, summary, adapter, and what `--resume` needs; every file appears whole or not at all.

    recipe.toml      the resolved recipe with the versions of the libraries
    rounds.jsonl     one object a round (round 0: the start)
    summary.json     totals, ratios, quality
    adapter/         the newest global adapter, in PEFT's layout (a changed base model's: at the end)
    adapters/NAME/   instead, where every client ends with a model of its own
    state/           global.safetensors: version, digest and all that continues from the last complete round
    payloads/        every uplink and downlink, where the user asked to keep them

A round counts once `state/global.safetensors` is replaced. `rounds.jsonl` is written before it and may be one round
ahead after a crash; opening the folder drops what is ahead.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.files import plain, write_atomically
from fedsrd.recipe import Recipe, load
from fedsrd.runs.records import RoundRecord, Summary, read_rounds, read_summary, rounds_text, summary_text

if TYPE_CHECKING:
    from torch import Tensor


class RunFolder:
    """One run on disk.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", thread_local=False)

    def try_lock(self) -> bool:
        """Claims the folder for this process until `unlock` or its end, however it ends; False where another process
        has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process inside.

        Raises:
            RunFolderError: another process has it.
        """
        held = self._lock.is_locked
        if not held and not self.try_lock():
            raise RunFolderError(f"{self.path}: another process is running in this folder; wait for it, or stop it")
        try:
            yield
        finally:
            if not held:
                self.unlock()

    def unlock(self) -> None:
        """Gives the folder up."""
        self._lock.release()

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self._summary.is_file()

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def adapters(self) -> list[Path]:
        """The adapters that the run has written: the global one, or every client's own."""
        own = sorted((self.path / "adapters").glob("*/adapter_config.json"))
        found = own or [self.adapter / "adapter_config.json"]
        return [file.parent for file in found if file.is_file()]

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def state(self) -> Path:
        """What the run continues from, a file of `federation.checkpoint`; replaced as a whole."""
        return self.path / "state" / "global.safetensors"

    def check_new(self) -> None:
        """Refuses a folder that something is in.

        Raises:
            RunFolderError: the path is a file, or a folder that is not empty.
        """
        if self.recipe_file.exists():
            raise RunFolderError(f"{self.path} holds a run already; continue it with --resume, or choose another --out")
        if self.path.exists() and (not self.path.is_dir() or any(p.name != ".lock" for p in self.path.iterdir())):
            raise RunFolderError(f"{self.path} is not an empty folder; choose another --out")

    def check_resumable(self, recipe: Recipe) -> None:
        """Refuses a folder without a run, or with another recipe's.

        Raises:
            RunFolderError: nothing to resume, or the recipes differ (the keys that do are named).
        """
        stored = self.stored_recipe().resolved()
        given = recipe.resolved()
        keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
        if keys:
            raise RunFolderError(
                f"{self.path} is a run of another recipe (it differs in {', '.join(sorted(keys))}); "
                "resume with its own recipe (leave RECIPE and --set out), or choose another --out"
            )

    def stored_recipe(self) -> Recipe:
        """The recipe that the folder's run was started with.

        Raises:
            RunFolderError: there is no run in the folder.
        """
        if not self.recipe_file.is_file():
            raise RunFolderError(f"{self.path} holds no run to resume (it has no recipe.toml)")
        try:
            return load(self.recipe_file)
        except RecipeError as error:
            raise RunFolderError(f"{self.path} cannot be resumed: {error}") from None

    def create(self, recipe: Recipe, environment: Mapping[str, str]) -> None:
        """Makes the folder and its recipe.toml."""
        with self._disk("the recipe"):
            (self.path / "state").mkdir(parents=True, exist_ok=True)
            write_atomically(self.recipe_file, recipe.to_toml(environment).encode())

    def records(self) -> list[RoundRecord]:
        """What rounds.jsonl holds, round 0 first; nothing before the first commit. Raises as `records.read_rounds`."""
        return read_rounds(self.rounds) if self.rounds.is_file() else []

    def summary(self) -> Summary:
        """What summary.json holds.

        Raises:
            RunFolderError: the run is not complete, or as `records.read_summary`.
        """
        if not self.complete:
            raise RunFolderError(f"{self.path}: the run is not complete, so it has no summary yet")
        return read_summary(self._summary)

    def commit(
        self, version: int, state: bytes, records: Sequence[RoundRecord], adapter: Mapping[str, "Tensor"] | None
    ) -> None:
        """Makes `version` the last complete round: rounds.jsonl, then the state, then the adapter.

        Args:
            version: how many rounds the state holds.
            state: the content of state/global.safetensors.
            records: of all rounds up to it.
            adapter: the tensors to use, under PEFT's names, written to `adapter/`; None where there is no one adapter
                (yet).

        Raises:
            FederationError: the disk is full or fails; what was complete before stays.
        """
        with self._disk(f"round {version}"):
            write_atomically(self.rounds, rounds_text(records).encode())
            write_atomically(self.state, state)
            if adapter is not None:
                write_atomically(self.adapter / "adapter_model.safetensors", _saved(adapter))

    def write_adapter_config(self, text: str) -> None:
        """Makes `adapter/` one that PEFT reads."""
        with self._disk("the adapter's config"):
            self.adapter.mkdir(exist_ok=True)
            write_atomically(self.adapter / "adapter_config.json", text.encode())

    def write_adapter(self, config: str, tensors: Mapping[str, "Tensor"], name: str | None = None) -> Path:
        """Writes a whole adapter in PEFT's layout: to `adapter/`, or to `adapters/NAME/`. Gives the folder."""
        folder = self.adapter if name is None else self.path / "adapters" / name
        with self._disk(f"the adapter {folder.name}"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "adapter_config.json", config.encode())
            write_atomically(folder / "adapter_model.safetensors", _saved(tensors))
        return folder

    def write_cards(self, text: str) -> None:
        """Puts a model card, README.md, beside every adapter of the run."""
        with self._disk("the model card"):
            for adapter in self.adapters():
                write_atomically(adapter / "README.md", text.encode())

    def write_summary(self, summary: Summary) -> None:
        """Writes summary.json."""
        with self._disk("the summary"):
            write_atomically(self._summary, summary_text(summary).encode())

    def keep_payloads(self, round_number: int, uplinks: Mapping[str, bytes], downlink: bytes) -> None:
        """Writes a round's payloads to payloads/round-NNNN/: CLIENT.up and server.down."""
        with self._disk(f"the payloads of round {round_number}"):
            folder = self.path / "payloads" / f"round-{round_number:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            for client, payload in uplinks.items():
                write_atomically(folder / f"{client}.up", payload)
            write_atomically(folder / "server.down", downlink)

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = "no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
            raise FederationError(
                f"{what} could not be written to {self.path}: {reason}. The last complete round is kept; "
                f"when this is mended, continue with: fedsrd run --resume --out {self.path}"
            ) from None


def _saved(tensors: Mapping[str, "Tensor"]) -> bytes:
    from safetensors.torch import save

    content: bytes = save(plain(tensors), metadata={"format": "pt"})
    return content

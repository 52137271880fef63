"""A run's folder: recipe, rounds, summary, adapter, and what `--resume` needs; every file appears whole or not at all.

    recipe.toml      the resolved recipe with the versions of the libraries
    rounds.jsonl     one object a round (round 0: the start)
    summary.json     totals, ratios, quality
    adapter/         the newest global adapter, in PEFT's layout (a changed base model's: at the end)
    adapters/NAME/   instead, where every client ends with a model of its own
    state/           global.safetensors: all that continues from the last complete round, the records too
    privacy/NAME/    what was given away of each client's examples, where that is accounted for (`privacy.ledger`)
    payloads/        every uplink and downlink, where the user asked to keep them

A round counts once `state/global.safetensors` is replaced, which needs nothing but recipe.toml to go on. `rounds.jsonl`
and `adapter/` are written after it, and again when the run is resumed. `state/`, `privacy/` and `payloads/`, from which
something of the data may be learnt, are for nobody but their owner.
"""

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fedsrd import toml
from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.files import is_temporary, own_folder, plain, refuse_link, sweep, write_atomically
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
        """Claims the folder for this process until `unlock` or its end, however it ends, and removes what killed
        processes have half written; False where another process has it.

        Raises:
            RunFolderError: the folder cannot be made or locked.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_link(self.path / ".lock")
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be used: {error.strerror or error}; choose another --out"
            ) from None
        sweep(self.path)
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

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Refuses a folder that is not new, or with `resume`, that is not this recipe's. What holds before the folder
        is locked need not hold afterwards: whoever locks it checks again.

        Raises:
            RunFolderError: as `check_new` and `check_resumable`.
        """
        if resume:
            self.check_resumable(recipe)
        else:
            self.check_new()

    def check_new(self) -> None:
        """Refuses a folder that something is in, other than what a run leaves that was killed before its first file.

        Raises:
            RunFolderError: the path is a file, or a folder that is not empty.
        """
        if any(file.exists() for file in (self.recipe_file, self.state, self.rounds)):
            raise RunFolderError(f"{self.path} holds a run already; continue it with --resume, or choose another --out")
        try:
            new = not self.path.exists() or (self.path.is_dir() and self._holds_nothing())
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be read: {error.strerror or error}; choose another --out"
            ) from None
        if not new:
            raise RunFolderError(f"{self.path} is not an empty folder; choose another --out")

    def _holds_nothing(self) -> bool:
        entries = [entry for entry in self.path.iterdir() if not is_temporary(entry.name)]
        names = {entry.name for entry in entries}
        # Where a process was at work, the last two may be there before the recipe.
        known = {".lock", "state", "log.jsonl", "tensorboard"} if ".lock" in names else {"state"}
        if names - known or any(entry.is_symlink() for entry in entries):
            return False
        return "state" not in names or all(is_temporary(entry.name) for entry in self.state.parent.iterdir())

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
            if self.state.exists() or self.rounds.exists():
                raise RunFolderError(
                    f"{self.path} cannot be resumed: its recipe.toml is missing; put a backup of it in its place"
                )
            raise RunFolderError(f"{self.path} holds no run to resume (it has no recipe.toml)")
        try:
            return load(self.recipe_file)
        except RecipeError as error:
            raise RunFolderError(f"{self.path} cannot be resumed: {error}") from None

    def create(self, recipe: Recipe, environment: Mapping[str, str]) -> None:
        """Makes the folder and its recipe.toml."""
        with self._disk("the recipe"):
            self.path.mkdir(parents=True, exist_ok=True)
            own_folder(self.state.parent, private=True)
            write_atomically(self.recipe_file, recipe.to_toml(environment).encode())

    def recipe_digest(self) -> str:
        """SHA-256, in hex, of the recipe that recipe.toml holds, as it stands there: a newer fedsrd, which knows more
        defaults, finds the same. The versions of the libraries and the clients' keys are not part of it.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        try:
            tree = toml.load(self.recipe_file)
            tree.pop("environment", None)
            # A site may get a new key within a run.
            for client in tree.get("clients", []):
                client.pop("key", None)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{self.recipe_file} cannot be read: {error}") from None
        return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()

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
        """Makes `version` the last complete round: the state, then rounds.jsonl, then the adapter.

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
            own_folder(self.state.parent, private=True)
            write_atomically(self.state, state)
            write_atomically(self.rounds, rounds_text(records).encode())
            if adapter is not None:
                own_folder(self.adapter)
                write_atomically(self.adapter / "adapter_model.safetensors", _saved(adapter))

    def write_adapter_config(self, text: str) -> None:
        """Makes `adapter/` one that PEFT reads."""
        with self._disk("the adapter's config"):
            own_folder(self.adapter)
            write_atomically(self.adapter / "adapter_config.json", text.encode())

    def write_adapter(self, config: str, tensors: Mapping[str, "Tensor"], name: str | None = None) -> Path:
        """Writes a whole adapter in PEFT's layout: to `adapter/`, or to `adapters/NAME/`. Gives the folder."""
        folder = self.adapter if name is None else self.path / "adapters" / name
        with self._disk(f"the adapter {folder.name}"):
            if name is not None:
                own_folder(folder.parent)
            own_folder(folder)
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
            folder = own_folder(self.path / "payloads", private=True) / f"round-{round_number:04d}"
            own_folder(folder)
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

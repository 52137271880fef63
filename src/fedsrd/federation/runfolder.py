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
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fedsrd.core.factors import Factors, ShapeTable, digest
from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.federation.messages import Broadcast
from fedsrd.recipe import Recipe, load

try:
    import fcntl
except ImportError:  # not on Windows: there, two runs in one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """All that a run continues from.

    Attributes:
        factors: the global factors.
        version: how many rounds they hold.
        base: the change of the frozen weights.
        server: what the method keeps at the server.
        clients: what it keeps at each client.
        missed: broadcasts that a client still lacks.
        known: the version that each client holds.
        federation: by which clients across a network tell this run from others.
    """

    factors: Factors
    version: int
    base: Mapping[str, Tensor] = field(default_factory=dict)
    server: Mapping[str, Tensor] = field(default_factory=dict)
    clients: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    missed: tuple[Broadcast, ...] = ()
    known: Mapping[str, int] = field(default_factory=dict)
    federation: str = ""

    @property
    def digest(self) -> str:
        """Of the replicated state."""
        return digest(self.factors, self.base)

    def extras(self) -> dict[str, Tensor]:
        """Everything but the factors, by names that no factor has."""
        found = {f"base|{name}": tensor for name, tensor in self.base.items()}
        found |= {f"server|{name}": tensor for name, tensor in self.server.items()}
        for client, memory in self.clients.items():
            found |= {f"client|{client}|{name}": tensor for name, tensor in memory.items()}
        for broadcast in self.missed:
            found[f"missed|{broadcast.version}"] = torch.frombuffer(bytearray(broadcast.payload), dtype=torch.uint8)
        return found

    def notes(self) -> str:
        """What of it is no tensor, as JSON."""
        about = [[b.round, b.version, b.digest, b.clients] for b in self.missed]
        return json.dumps({"missed": about, "known": dict(self.known), "federation": self.federation})

    @classmethod
    def read(cls, factors: Factors, version: int, extras: Mapping[str, Tensor], notes: str = "{}") -> "Checkpoint":
        """The inverse of `extras` and `notes`."""
        parts: dict[str, dict[str, Tensor]] = {"base": {}, "server": {}, "missed": {}}
        clients: dict[str, dict[str, Tensor]] = {}
        for key, tensor in extras.items():
            kind, _, name = key.partition("|")
            if kind == "client":
                client, _, name = name.partition("|")
                clients.setdefault(client, {})[name] = tensor
            else:
                parts[kind][name] = tensor
        order = [name for name in factors if name in parts["base"]]
        said = json.loads(notes)
        missed = tuple(
            Broadcast(number, led_to, parts["missed"][str(led_to)].numpy().tobytes(), found, count)
            for number, led_to, found, count in said.get("missed", [])
        )
        base = {name: parts["base"][name] for name in order}
        return cls(
            factors, version, base, parts["server"], clients, missed, said.get("known", {}), said.get("federation", "")
        )


class RunFolder:
    """One run on disk.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def try_lock(self) -> bool:
        """Claims the folder for this process until `unlock` or its end; False where another process has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = (self.path / ".lock").open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            return False
        self._lock = handle
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process inside.

        Raises:
            RunFolderError: another process has it.
        """
        held = self._lock is not None
        if not held and not self.try_lock():
            raise RunFolderError(f"{self.path}: another process is running in this folder; wait for it, or stop it")
        try:
            yield
        finally:
            if not held:
                self.unlock()

    def unlock(self) -> None:
        """Gives the folder up."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").is_file()

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
    def _rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def _state(self) -> Path:
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

    def restore(self) -> tuple[Checkpoint, list[Record]] | None:
        """State and records of the last complete round; None when not even the start was complete.

        Raises:
            RunFolderError: the state is damaged.
        """
        from fedsrd.training.models import factors_of_adapter

        if not self._state.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._state, framework="pt") as archive:
                metadata = archive.metadata() or {}
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
            extras = {key: tensors.pop(key) for key in list(tensors) if "|" in key}
            factors = factors_of_adapter(tensors)
            version = int(metadata["version"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunFolderError(f"{self._state} is damaged, the run cannot be resumed: {error}") from None
        ordered = {name: factors[name] for name in json.loads(metadata["modules"])}
        checkpoint = Checkpoint.read(ordered, version, extras, metadata.get("notes", "{}"))
        if checkpoint.digest != metadata["digest"]:
            raise RunFolderError(f"{self._state} is damaged: its digest is not {metadata['digest'][:12]}")
        return checkpoint, self._records(version)

    def commit(self, checkpoint: Checkpoint, records: list[Record], model: Factors | None) -> None:
        """Makes a checkpoint the last complete round: rounds.jsonl, then the state, then the adapter.

        Args:
            checkpoint: the state.
            records: the objects of all rounds up to it.
            model: the factors to use, written to `adapter/`; None where there is no one adapter (yet).

        Raises:
            FederationError: the disk is full or fails; what was complete before stays.
        """
        from safetensors.torch import save

        from fedsrd.training.models import adapter_tensors

        tensors = adapter_tensors(checkpoint.factors)
        metadata = {
            "version": str(checkpoint.version),
            "digest": checkpoint.digest,
            "modules": json.dumps(list(checkpoint.factors)),
            "notes": checkpoint.notes(),
        }
        with self._disk(f"round {checkpoint.version}"):
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_atomically(self._rounds, lines.encode())
            write_atomically(self._state, save(_plain({**tensors, **checkpoint.extras()}), metadata=metadata))
            if model is not None:
                write_atomically(
                    self.adapter / "adapter_model.safetensors",
                    save(_plain(adapter_tensors(model)), metadata={"format": "pt"}),
                )

    def write_adapter_config(self, text: str) -> None:
        """Makes `adapter/` one that PEFT reads."""
        with self._disk("the adapter's config"):
            self.adapter.mkdir(exist_ok=True)
            write_atomically(self.adapter / "adapter_config.json", text.encode())

    def write_adapter(self, config: str, tensors: Mapping[str, Tensor], name: str | None = None) -> Path:
        """Writes a whole adapter in PEFT's layout: to `adapter/`, or to `adapters/NAME/`. Gives the folder."""
        from safetensors.torch import save

        folder = self.adapter if name is None else self.path / "adapters" / name
        with self._disk(f"the adapter {folder.name}"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "adapter_config.json", config.encode())
            write_atomically(folder / "adapter_model.safetensors", save(_plain(tensors), metadata={"format": "pt"}))
        return folder

    def write_summary(self, summary: Record) -> None:
        """Writes summary.json."""
        with self._disk("the summary"):
            write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def keep_payloads(self, round_number: int, uplinks: Mapping[str, bytes], downlink: bytes) -> None:
        """Writes a round's payloads to payloads/round-NNNN/: CLIENT.up and server.down."""
        with self._disk(f"the payloads of round {round_number}"):
            folder = self.path / "payloads" / f"round-{round_number:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            for client, payload in uplinks.items():
                write_atomically(folder / f"{client}.up", payload)
            write_atomically(folder / "server.down", downlink)

    def shape_table(self) -> ShapeTable | None:
        """The shapes of the run's adapter, None before its first commit. Raises RunFolderError as `restore`."""
        restored = self.restore()
        if restored is None:
            return None
        return ShapeTable.of(restored[0].factors)

    def _records(self, version: int) -> list[Record]:
        records = []
        for line in self._rounds.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["round"] <= version:
                records.append(record)
        return records

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


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file's content as a whole: a temporary file beside it, flushed to the disk, then renamed."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        with scratch.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename. Not every system can open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses views, and tensors that share memory.
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        pointer = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if pointer in seen else whole
        seen.add(pointer)
    return found

"""A run's folder: recipe, rounds, summary, adapter, and what `--resume` needs; every file appears whole or not at all.

    recipe.toml      the resolved recipe with the versions of the libraries
    rounds.jsonl     one object a round (round 0: the start)
    summary.json     totals, ratios, quality
    adapter/         the newest global adapter, in PEFT's layout
    state/           global.safetensors: factors, version and digest of the last complete round
    payloads/        every uplink and downlink, where the user asked to keep them

A round counts once `state/global.safetensors` is replaced. `rounds.jsonl` is written before it and may be one round
ahead after a crash; opening the folder drops what is ahead.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedsrd.core.factors import Factors, LoraPair, ModuleShape, ShapeTable, digest
from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.recipe import Recipe, load

Record = dict[str, Any]


class RunFolder:
    """One run on disk.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

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
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
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

    def restore(self) -> tuple[dict[str, LoraPair], int, list[Record]] | None:
        """Factors, version and records of the last complete round; None when not even the start was complete.

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
                factors = factors_of_adapter({key: archive.get_tensor(key) for key in archive.keys()})  # noqa: SIM118
            version = int(metadata["version"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunFolderError(f"{self._state} is damaged, the run cannot be resumed: {error}") from None
        ordered = _in_order(factors, json.loads(metadata["modules"]))
        if digest(ordered) != metadata["digest"]:
            raise RunFolderError(f"{self._state} is damaged: its digest is not {metadata['digest'][:12]}")
        return ordered, version, self._records(version)

    def commit(self, factors: Factors, version: int, records: list[Record]) -> None:
        """Makes `version` the last complete round: rounds.jsonl, then the state, then the adapter.

        Raises:
            FederationError: the disk is full or fails; what was complete before stays.
        """
        from safetensors.torch import save

        from fedsrd.training.models import adapter_tensors

        tensors = adapter_tensors(factors)
        metadata = {"version": str(version), "digest": digest(factors), "modules": json.dumps(list(factors))}
        with self._disk(f"round {version}"):
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_atomically(self._rounds, lines.encode())
            write_atomically(self._state, save(tensors, metadata=metadata))
            write_atomically(self.adapter / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))

    def write_adapter_config(self, text: str) -> None:
        """Makes `adapter/` one that PEFT reads."""
        with self._disk("the adapter's config"):
            self.adapter.mkdir(exist_ok=True)
            write_atomically(self.adapter / "adapter_config.json", text.encode())

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
        return ShapeTable(
            tuple(
                ModuleShape(name, pair.B.shape[0], pair.A.shape[1], pair.A.shape[0])
                for name, pair in restored[0].items()
            )
        )

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


def _in_order(factors: Factors, names: list[str]) -> dict[str, LoraPair]:
    return {name: factors[name] for name in names}

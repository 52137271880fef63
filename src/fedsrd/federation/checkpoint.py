"""All that a run, or a client, continues from, as one file."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedsrd.core.tensors import GlobalState
from fedsrd.errors import RunFolderError
from fedsrd.federation.messages import Broadcast
from fedsrd.files import plain

FORMAT = 3
"""Of the file. Older ones, without a checksum of the whole, are not read any more."""


class _Notes(BaseModel):
    """What of a checkpoint is no tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int
    digest: str
    tensors: list[str]
    base: list[str]
    missed: list[tuple[int, int, str, int]]
    known: dict[str, int]
    counted: dict[str, int]
    federation: str
    recipe: str
    norms: dict[str, list[float]]
    steps: dict[str, int] = {}


@dataclass(frozen=True)
class Checkpoint:
    """All that a run continues from.

    Attributes:
        state: the global state.
        server: what the method keeps at the server.
        clients: what it keeps at each client.
        missed: broadcasts that a client still lacks.
        known: the version that each client holds.
        counted: the last round in which each client's update was aggregated.
        federation: by which clients across a network tell this run from others.
        recipe: digest of the run's recipe (`RunFolder.recipe_digest`).
        records: of all rounds so far, the content of rounds.jsonl.
        norms: of each client's last accepted updates.
        steps: of the grid, where updates are added up as integers (`sums.Steps`).
    """

    state: GlobalState
    server: Mapping[str, Tensor] = field(default_factory=dict)
    clients: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    missed: tuple[Broadcast, ...] = ()
    known: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    federation: str = ""
    recipe: str = ""
    records: str = ""
    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by the part that it belongs to and its name; and bytes, as uint8."""
        found = {f"state|{name}": tensor for name, tensor in self.state.tensors.items()}
        found |= {f"base|{name}": tensor for name, tensor in self.state.base_delta.items()}
        found |= {f"server|{name}": tensor for name, tensor in self.server.items()}
        for client, memory in self.clients.items():
            found |= {f"client|{client}|{name}": tensor for name, tensor in memory.items()}
        for broadcast in self.missed:
            found[f"missed|{broadcast.version}"] = _tensor(broadcast.payload)
        if self.records:
            found["records|"] = _tensor(self.records.encode())
        return found

    def notes(self) -> str:
        """What of it is no tensor, as JSON."""
        return _Notes(
            version=self.state.version,
            digest=self.state.digest,
            tensors=list(self.state.tensors),
            base=list(self.state.base_delta),
            missed=[(b.round, b.version, b.digest, b.clients) for b in self.missed],
            known=dict(self.known),
            counted=dict(self.counted),
            federation=self.federation,
            recipe=self.recipe,
            norms={client: list(norms) for client, norms in self.norms.items()},
            steps=dict(self.steps),
        ).model_dump_json()

    def to_bytes(self) -> bytes:
        """All of it as one safetensors file, with a checksum of all of it."""
        from safetensors.torch import save

        tensors, notes = plain(self.tensors()), self.notes()
        content: bytes = save(
            tensors, metadata={"format": str(FORMAT), "checksum": _checksum(notes, tensors), "notes": notes}
        )
        return content

    @classmethod
    def load(cls, path: Path, consequence: str) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Raises:
            RunFolderError: the file is missing, damaged in any bit, or of another format; `consequence` says what
                cannot be done then, or what is done instead.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as archive:
                metadata = archive.metadata() or {}
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: {error}") from None
        if metadata.get("format") != str(FORMAT):
            raise RunFolderError(
                f"{path} has format {metadata.get('format', 1)}, {consequence}: this version of fedsrd reads {FORMAT}"
            )
        try:
            notes = metadata["notes"]
            if _checksum(notes, tensors) != metadata["checksum"]:
                raise ValueError("its checksum is not that of its content")
            return cls.of(tensors, notes)
        except KeyError as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: it lacks {error}") from None
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: {error}") from None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], notes: str) -> "Checkpoint":
        """The inverse of `tensors` and `notes`. Raises KeyError, ValueError or TypeError where they do not fit."""
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "base": {}, "server": {}, "missed": {}, "records": {}}
        clients: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "client":
                client, _, name = name.partition("|")
                clients.setdefault(client, {})[name] = tensor
            else:
                parts[kind][name] = tensor
        said = _Notes.model_validate_json(notes)
        state = GlobalState(
            {name: parts["state"][name] for name in said.tensors},
            {name: parts["base"][name] for name in said.base},
            said.version,
        )
        if state.digest != said.digest:
            raise ValueError("its digest is not that of its state")
        missed = tuple(
            Broadcast(number, led_to, parts["missed"][str(led_to)].numpy().tobytes(), found, count)
            for number, led_to, found, count in said.missed
        )
        records = parts["records"][""].numpy().tobytes().decode() if parts["records"] else ""
        return cls(
            state,
            parts["server"],
            clients,
            missed,
            said.known,
            said.counted,
            said.federation,
            said.recipe,
            records,
            said.norms,
            said.steps,
        )


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _checksum(notes: str, tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b over everything, in hex: of the state's own values over their digest, which is in the notes and is
    computed in any case, so that nothing is hashed twice.
    """
    hasher = hashlib.blake2b(digest_size=32, person=b"fedsrd-state")

    def text(value: str) -> None:
        raw = value.encode()
        hasher.update(struct.pack("<Q", len(raw)) + raw)

    text(notes)
    for key, tensor in sorted(tensors.items()):
        text(key)
        text(str(tensor.dtype))
        hasher.update(struct.pack(f"<{tensor.dim() + 1}Q", tensor.dim(), *tensor.shape))
        if not key.startswith(("state|", "base|")):
            hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()

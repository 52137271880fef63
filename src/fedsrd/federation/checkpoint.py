"""All that a run, or a client, continues from, as one file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedsrd.core.tensors import GlobalState
from fedsrd.errors import RunFolderError
from fedsrd.federation.messages import Broadcast
from fedsrd.files import plain

FORMAT = 2
"""Of the file. 1, before the state was one of named tensors, is not read any more."""


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
        norms: of each client's last accepted updates.
    """

    state: GlobalState
    server: Mapping[str, Tensor] = field(default_factory=dict)
    clients: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    missed: tuple[Broadcast, ...] = ()
    known: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    federation: str = ""
    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by the part that it belongs to and its name."""
        found = {f"state|{name}": tensor for name, tensor in self.state.tensors.items()}
        found |= {f"base|{name}": tensor for name, tensor in self.state.base_delta.items()}
        found |= {f"server|{name}": tensor for name, tensor in self.server.items()}
        for client, memory in self.clients.items():
            found |= {f"client|{client}|{name}": tensor for name, tensor in memory.items()}
        for broadcast in self.missed:
            found[f"missed|{broadcast.version}"] = torch.frombuffer(bytearray(broadcast.payload), dtype=torch.uint8)
        return found

    def notes(self) -> str:
        """What of it is no tensor, as JSON."""
        return json.dumps(
            {
                "version": self.state.version,
                "tensors": list(self.state.tensors),
                "base": list(self.state.base_delta),
                "missed": [[b.round, b.version, b.digest, b.clients] for b in self.missed],
                "known": dict(self.known),
                "counted": dict(self.counted),
                "federation": self.federation,
                "norms": {client: list(norms) for client, norms in self.norms.items()},
            }
        )

    def to_bytes(self) -> bytes:
        """All of it as one safetensors file."""
        from safetensors.torch import save

        metadata = {"format": str(FORMAT), "digest": self.state.digest, "notes": self.notes()}
        content: bytes = save(plain(self.tensors()), metadata=metadata)
        return content

    @classmethod
    def load(cls, path: Path, consequence: str) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Raises:
            RunFolderError: the file is damaged, or of another format; `consequence` says what cannot be done then.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as archive:
                metadata = archive.metadata() or {}
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: {error}") from None
        if metadata.get("format") != str(FORMAT):
            raise RunFolderError(
                f"{path} has format {metadata.get('format', 1)}, {consequence}: this version of fedsrd reads {FORMAT}"
            )
        try:
            checkpoint = cls.of(tensors, metadata["notes"])
        except (KeyError, ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: {error!r}") from None
        if checkpoint.state.digest != metadata.get("digest"):
            raise RunFolderError(f"{path} is damaged, {consequence}: its digest is not that of its state")
        return checkpoint

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], notes: str) -> "Checkpoint":
        """The inverse of `tensors` and `notes`. Raises KeyError, ValueError or TypeError where they do not fit."""
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "base": {}, "server": {}, "missed": {}}
        clients: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "client":
                client, _, name = name.partition("|")
                clients.setdefault(client, {})[name] = tensor
            else:
                parts[kind][name] = tensor
        said = json.loads(notes)
        state = GlobalState(
            {name: parts["state"][name] for name in said["tensors"]},
            {name: parts["base"][name] for name in said["base"]},
            said["version"],
        )
        missed = tuple(
            Broadcast(number, led_to, parts["missed"][str(led_to)].numpy().tobytes(), found, count)
            for number, led_to, found, count in said["missed"]
        )
        # Checkpoints from before there were norms have none.
        norms = said.get("norms", {})
        return cls(state, parts["server"], clients, missed, said["known"], said["counted"], said["federation"], norms)

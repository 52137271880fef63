"""All that a run, or a client, continues from, as one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedsrd.core.factors import Factors, digest
from fedsrd.errors import RunFolderError
from fedsrd.federation.messages import Broadcast
from fedsrd.files import plain


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

    def to_bytes(self) -> bytes:
        """All of it as one safetensors file."""
        from safetensors.torch import save

        from fedsrd.training.models import adapter_tensors

        metadata = {
            "version": str(self.version),
            "digest": self.digest,
            "modules": json.dumps(list(self.factors)),
            "notes": self.notes(),
        }
        content: bytes = save(plain({**adapter_tensors(self.factors), **self.extras()}), metadata=metadata)
        return content

    @classmethod
    def load(cls, path: Path, consequence: str) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Raises:
            RunFolderError: the file is damaged; `consequence` says what cannot be done then.
        """
        from safetensors import SafetensorError, safe_open

        from fedsrd.training.models import factors_of_adapter

        try:
            with safe_open(path, framework="pt") as archive:
                metadata = archive.metadata() or {}
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
            extras = {key: tensors.pop(key) for key in list(tensors) if "|" in key}
            factors = factors_of_adapter(tensors)
            version = int(metadata["version"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged, {consequence}: {error}") from None
        ordered = {name: factors[name] for name in json.loads(metadata["modules"])}
        checkpoint = cls.read(ordered, version, extras, metadata.get("notes", "{}"))
        if checkpoint.digest != metadata["digest"]:
            raise RunFolderError(f"{path} is damaged, {consequence}: its digest is not {metadata['digest'][:12]}")
        return checkpoint

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

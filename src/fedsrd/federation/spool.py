"""Decoded updates of one round: in memory while they are few, else in one temporary file.

The server needs every client's part of one module at a time. Past `MEMORY` bytes decoded updates go to a file that has
no name and that nobody else can open, and a tensor is read back when it is asked for, so that the server's memory does
not grow with the number of clients.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch

from fedsrd.core.tensors import Delta, Draw, Shape, SparseTensor, aligned
from fedsrd.errors import FederationError

MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one tensor lies in the file: positions (int64) if any, then values (float32)."""

    offset: int
    count: int
    shape: Shape
    listed: bool
    draw: Draw | None


class Spool:
    """Keeps deltas until it is closed. Use as a context manager."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._left = memory
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, delta: Delta) -> Delta:
        """The same delta, from memory or from the disk.

        Raises:
            FederationError: the file cannot be written.
        """
        size = sum(sparse.count * (4 if sparse.positions is None else 12) for sparse in delta.values())
        if size <= self._left:
            self._left -= size
            return delta
        try:
            return self._write(delta)
        except OSError as error:
            raise FederationError(
                f"{size / (1 << 20):.0f} MiB of decoded updates cannot be written to {tempfile.gettempdir()}: "
                f"{error.strerror}; free space there, or name another folder in $TMPDIR"
            ) from None

    def _write(self, delta: Delta) -> Delta:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fedsrd-")  # noqa: SIM115 (closed by __exit__)
        places = {}
        for name, sparse in delta.items():
            places[name] = _Place(
                self._file.tell(), sparse.count, sparse.shape, sparse.positions is not None, sparse.draw
            )
            if sparse.positions is not None:
                self._file.write(sparse.positions.numpy().tobytes())
            self._file.write(sparse.values.numpy().tobytes())
        self._file.flush()
        return _Spooled(self._file.fileno(), places)


class _Spooled(Mapping[str, SparseTensor]):
    """A delta in the spool's file. Threads may read it side by side."""

    def __init__(self, file: int, places: Mapping[str, _Place]) -> None:
        self._file = file
        self._places = places

    def __getitem__(self, name: str) -> SparseTensor:
        place = self._places[name]
        raw = os.pread(self._file, place.count * (12 if place.listed else 4), place.offset)
        head = 8 * place.count if place.listed else 0
        # A copy, because tensors over bytes cannot be written to.
        values = aligned(torch.from_numpy(np.frombuffer(raw, np.float32, offset=head).copy()))
        positions = torch.from_numpy(np.frombuffer(raw, np.int64, place.count).copy()) if place.listed else None
        return SparseTensor(place.shape, positions, values, place.draw)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

"""Which sums a site has helped to unmask, of all its runs: the same update is never in two of them that differ.

The same training from the same weights gives the same update, in whatever run it is asked for. A server that has the
sum of some sites from one run and of one site less from another has that site's update by subtraction. So a site
remembers what its update followed from and who else was in the sum. Training that differs a little, which gives nearly
the same update, is not found: how often a site trains at all is for its rules (`rules`).
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import Field

from fedsrd.errors import RunFolderError, SecureAggregationError
from fedsrd.files import own_folder, refuse_link, write_atomically
from fedsrd.privacy.secure.session import Message

LARGEST = 64 << 20
"""Bytes of a file that is read: about 400,000 rounds."""
FILE = "unmasked.json"
_LOCAL = ("model", "lora", "training")
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


class _Sums(Message):
    """All sums, by what this site's update in them followed from, with a hash of who was in them."""

    format: Literal[1] = 1
    sums: dict[_Hash, _Hash] = Field(default_factory=dict)


class Unmasked:
    """The sums of one site.

    Args:
        folder: where they are kept, for all runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, origin: str, names: Collection[str]) -> None:
        """Refuses a sum of other clients than that which an update of this origin was in.

        Args:
            origin: of `origin`.
            names: the clients whose updates the sum has.

        Raises:
            SecureAggregationError: there was another sum, or nobody knows.
        """
        self._check(self._read(), origin, names)

    def note(self, origin: str, names: Collection[str]) -> None:
        """The same, and remembers this one, before anything that unmasks it is sent.

        Raises:
            SecureAggregationError: as `check`, or it cannot be written. Nothing was.
        """
        with self._locked():
            known = self._read()
            self._check(known, origin, names)
            if origin in known.sums:
                return
            after = _Sums(sums={**known.sums, origin: _digest(sorted(names))})
            try:
                write_atomically(self._folder / FILE, after.write(), private=True)
            except OSError as error:
                raise SecureAggregationError(f"{FILE} cannot be written: {error.strerror or error}") from None

    @staticmethod
    def _check(known: _Sums, origin: str, names: Collection[str]) -> None:
        before = known.sums.get(origin)
        if before is not None and before != _digest(sorted(names)):
            raise SecureAggregationError(
                "this site's very same update was in a sum of other clients, in another run of this seed, model and "
                "training: the server would learn the difference of two sums; give the run another seed"
            )

    def _read(self) -> _Sums:
        file = self._folder / FILE
        try:
            refuse_link(file)
            with file.open("rb") as stream:
                content = stream.read(LARGEST + 1)
        except FileNotFoundError:
            return _Sums()
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SecureAggregationError(f"{FILE} cannot be read: {reason}") from None
        try:
            if len(content) <= LARGEST:
                return _Sums.read(content)
        except SecureAggregationError:
            pass
        raise SecureAggregationError(
            f"{FILE} is damaged, so nobody knows in which sums this site's updates were: put it back from a backup"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            own_folder(own_folder(self._folder.parent, private=True) / self._folder.name, private=True)
            refuse_link(self._folder / ".lock")
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SecureAggregationError(f"{FILE} cannot be kept: {reason}") from None
        with FileLock(self._folder / ".lock", mode=0o600):
            yield


def origin(tables: Mapping[str, Any], seed: int, version: int, digest: str) -> str:
    """SHA-256, in hexadecimal, of what a client's training in a round follows from, its own data aside.

    The method, the grid and the length of the run are not in it: the same training seen twice is no other one.

    Args:
        tables: of the recipe, as the server tells them.
        seed: the run's.
        version: of the weights.
        digest: of the weights.
    """
    return _digest([{name: tables.get(name) for name in _LOCAL}, seed, version, digest])


def _digest(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

"""A ledger of what training has given away of one body of data, on the disk of whoever has the data.

Every round is written down before it is trained, so that no crash loses one; a round that never left counts like one
that did. A budget is of the data, not of a run: all runs are in one file. A ledger that is damaged, or missing where
there was one, ends training: nothing ever starts again from zero by itself.
"""

import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsrd.errors import PrivacyError, RunFolderError
from fedsrd.files import own_folder, refuse_link, write_atomically
from fedsrd.privacy.accounting import Event, Spent, epsilon, merged
from fedsrd.privacy.options import SitePrivacy
from fedsrd.privacy.stream import SECRET

RECENT = 256
"""How many trained rounds are known again."""
LARGEST = 16 << 20
"""Bytes of a ledger that is read."""
SLACK = 1e-9


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Account(_Part):
    """One run's part: its steps by kind, and how many rounds they were."""

    events: list[Event] = []
    rounds: Annotated[int, Field(ge=0)] = 0


class Books(_Part):
    """All that a ledger holds.

    Attributes:
        format: 1.
        runs: by the run's name.
        recent: run and fingerprint of the last rounds, oldest first.
    """

    format: Literal[1] = 1
    runs: dict[str, Account] = {}
    recent: list[str] = []

    @property
    def rounds(self) -> int:
        """Of all runs."""
        return sum(account.rounds for account in self.runs.values())

    def events(self) -> list[Event]:
        """Of all runs, those of one kind in one."""
        return merged(event for account in self.runs.values() for event in account.events)

    def spent(self, delta: float) -> Spent:
        """What all runs have given away together."""
        return Spent(epsilon=epsilon(self.events(), delta), delta=delta)

    def with_round(self, run: str, event: Event, fingerprint: str) -> "Books":
        """The books with one more round."""
        before = self.runs.get(run, Account())
        after = Account(events=merged([*before.events, event]), rounds=before.rounds + 1)
        recent = [*self.recent, *([fingerprint] if fingerprint else [])][-RECENT:]
        return Books(runs={**self.runs, run: after}, recent=recent)


class Ledger:
    """One run's way to a ledger; `training.private.Account` is this.

    Args:
        folder: where it lies; `ledger.json` in it, and a site's `noise.key`.
        run: the run's name.
        delta: of what the run says of itself.
        run_epsilon: what the run may spend; None: no bound of its own.
        limits: what the data's owner allows; None: nothing is said.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        delta: float,
        *,
        run_epsilon: float | None = None,
        limits: SitePrivacy | None = None,
    ) -> None:
        self._folder = folder
        self._run = run
        self._delta = delta
        self._run_epsilon = run_epsilon
        self._limits = limits

    def charge(self, event: Event, fingerprint: str) -> Spent:
        """Writes a round's steps down; gives what the run has given away with them. A fingerprint that is known costs
        nothing in the same run: the same bytes come of it again.

        Raises:
            PrivacyError: they would go beyond a bound, or the ledger is damaged. Nothing was written.
        """
        with _locked(self._folder):
            before = read(self._folder)
            # Another run says for itself what it has given away.
            known = f"{self._run} {fingerprint}" if fingerprint else ""
            if known in before.recent:
                return self._spent(before)
            after = before.with_round(self._run, event, known)
            found = self._spent(after)
            self._check(after, found)
            _write(self._folder, after)
        return found

    def standing(self, noise_multiplier: float, rate: float) -> str:
        """One line for the log of whoever has the data: on what terms it trains, and how the ledger stands.

        Raises:
            PrivacyError: the ledger is damaged.
        """
        books = read(self._folder)
        delta = self._delta if self._limits is None else self._limits.delta
        most = "" if self._limits is None else f" of {self._limits.epsilon:g}"
        return (
            f"differential privacy of examples, noise of {noise_multiplier:g} clips, {rate:.2%} of them a step; "
            f"given away so far, in all runs: epsilon {books.spent(delta).epsilon:.3g}{most} (delta {delta:g}) in "
            f"{books.rounds} rounds"
        )

    def _spent(self, books: Books) -> Spent:
        return Spent(epsilon=epsilon(books.runs[self._run].events, self._delta), delta=self._delta)

    def _check(self, after: Books, run: Spent) -> None:
        # The numbers of a site's rules are its own: the server reads these messages.
        if self._run_epsilon is not None and run.epsilon > self._run_epsilon * (1 + SLACK):
            raise PrivacyError(
                f"privacy.examples.epsilon = {self._run_epsilon:g} of this run is spent: another round would make it "
                f"{run.epsilon:.4g}"
            )
        if self._limits is None:
            return
        if self._limits.rounds is not None and after.rounds > self._limits.rounds:
            raise PrivacyError("the site's rules allow no more rounds of training on its data (privacy.rounds)")
        if after.spent(self._limits.delta).epsilon > self._limits.epsilon * (1 + SLACK):
            raise PrivacyError("the site's rules do not allow what this round would give away (privacy.epsilon)")


def read(folder: Path) -> Books:
    """A folder's ledger; an empty one where there never was any.

    Raises:
        PrivacyError: it is damaged, or gone while the key beside it is there.
    """
    file = folder / "ledger.json"
    try:
        refuse_link(file)
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except FileNotFoundError:
        if (folder / "noise.key").exists():
            raise PrivacyError(
                "the privacy ledger is gone, though the key beside it is there: put it back from a backup. Who is sure "
                "that nothing was ever trained on this data removes the key too"
            ) from None
        return Books()
    except (OSError, RunFolderError) as error:
        raise PrivacyError(f"the privacy ledger cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = json.loads(content)
        books = Books.model_validate(tree["books"])
        whole = tree["sha256"] == _digest(books) and len(content) <= LARGEST
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        whole = False
    if not whole:
        raise PrivacyError(
            "the privacy ledger is damaged, so nobody knows what has been given away, and nothing is trained: put it "
            "back from a backup (ledger.json in the site's state folder, under privacy)"
        )
    return books


def site_secret(folder: Path) -> bytes:
    """A site's secret of 32 bytes, beside its ledger (`kept_secret`).

    Raises:
        PrivacyError: it is damaged, open to others, or gone while the ledger says that it was used.
    """
    file = folder / "noise.key"
    with _locked(folder):
        if not file.exists() and read(folder).rounds:
            raise PrivacyError(
                "the key of the site's noise is gone (noise.key in the site's state folder, under privacy): put it "
                "back from a backup. Who has none makes one of 32 random bytes, for nobody else to read: a round that "
                "is trained again then has other noise and counts twice"
            )
        if not (folder / "ledger.json").exists() and not file.exists():
            # First: a key without a ledger says that one was lost.
            _write(folder, Books())
        return kept_secret(file)


def kept_secret(file: Path) -> bytes:
    """A file's secret of 32 bytes; made by the system's generator, for nobody but its owner, where there is none.

    Raises:
        PrivacyError: it is damaged or open to others, or cannot be read or written.
    """
    try:
        refuse_link(file)
        with file.open("rb") as stream:
            mode, found = os.fstat(stream.fileno()).st_mode, stream.read(SECRET + 1)
    except FileNotFoundError:
        found = secrets.token_bytes(SECRET)
        _save(file, found)
        return found
    except (OSError, RunFolderError) as error:
        raise PrivacyError(f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(found) != SECRET:
        raise PrivacyError(f"{file.name}, the key of the noise, is damaged: expected {SECRET} bytes")
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PrivacyError(
            f"{file.name} is open to others (mode {stat.S_IMODE(mode):04o}): who has it can take the noise away; "
            "remove it if somebody may have read it, else chmod 600"
        )
    return found


def _write(folder: Path, books: Books) -> None:
    content = {"books": books.model_dump(), "sha256": _digest(books)}
    _save(folder / "ledger.json", (json.dumps(content, indent=1) + "\n").encode())


def _save(file: Path, content: bytes) -> None:
    try:
        write_atomically(file, content, private=True)
    except OSError as error:
        raise PrivacyError(f"{file.name} cannot be written: {error.strerror or error}; nothing is trained") from None


def _locked(folder: Path) -> FileLock:
    try:
        own_folder(own_folder(folder.parent, private=True) / folder.name, private=True)
        refuse_link(folder / ".lock")
    except (OSError, RunFolderError) as error:
        raise PrivacyError(f"the privacy ledger cannot be kept: {getattr(error, 'strerror', None) or error}") from None
    return FileLock(folder / ".lock", mode=0o600)


def _digest(books: Books) -> str:
    return hashlib.sha256(books.model_dump_json().encode()).hexdigest()

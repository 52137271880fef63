"""How much has been trained on a site's data, on its own disk: of the data, whatever run or server comes.

Counted before it is trained, so that no crash loses a round; one that never left counts like one that did. A count that
is damaged, or gone where there was one, refuses: nothing starts again from zero by itself.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsrd.errors import RulesError, RunFolderError
from fedsrd.federation.remote.rules import Rules, broken
from fedsrd.files import own_folder, refuse_link, write_atomically

LARGEST = 64 << 20
"""Bytes of a file that is read."""
FILE = "counts.json"
Number = Annotated[int, Field(ge=0)]


class Counted(BaseModel):
    """What was trained so far.

    Attributes:
        format: 1.
        rounds: in all runs.
        steps: of the optimizer, in all runs; those that a client's own code takes are not known, and not among them.
        sequences: that these steps took, in all runs.
        runs: rounds by run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    rounds: Number = 0
    steps: Number = 0
    sequences: Number = 0
    runs: dict[str, Number] = {}

    def with_round(self, run: str, steps: int | None, batch: int) -> "Counted":
        """With one more round of so many steps of so many sequences."""
        taken = steps or 0
        return Counted(
            rounds=self.rounds + 1,
            steps=self.steps + taken,
            sequences=self.sequences + taken * batch,
            runs={**self.runs, run: self.runs.get(run, 0) + 1},
        )


class Counts:
    """The count of one site.

    Args:
        folder: where it lies.
        expected: whether something is known to have been trained under rules, so that there must be a count; asked
            where there is none.
    """

    def __init__(self, folder: Path, expected: Callable[[], bool]) -> None:
        self._folder = folder
        self._expected = expected

    def charge(self, rules: Rules, run: str, steps: int | None, batch: int, examples: int) -> None:
        """Writes one more round down, before it is trained.

        Args:
            rules: the site's.
            run: its id.
            steps: of the optimizer that the task asks for; None where the client's own code decides.
            batch: sequences a step.
            examples: how many the site has.

        Raises:
            RulesError: the round would go beyond a rule, or the count cannot be read or written. Nothing was written.
        """
        try:
            own_folder(self._folder, private=True)
            refuse_link(self._folder / ".lock")
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RulesError(f"the count of rounds cannot be kept: {reason}; nothing is trained") from None
        with FileLock(self._folder / ".lock", mode=0o600):
            after = self.read().with_round(run, steps, batch)
            _check(rules, after, run, steps, examples)
            try:
                write_atomically(self._folder / FILE, _written(after), private=True)
            except OSError as error:
                reason = error.strerror or error
                raise RulesError(f"the count of rounds cannot be written: {reason}; nothing is trained") from None

    def read(self) -> Counted:
        """What was counted. Raises RulesError where it is damaged, or gone."""
        file = self._folder / FILE
        try:
            refuse_link(file)
            with file.open("rb") as stream:
                content = stream.read(LARGEST + 1)
        except FileNotFoundError:
            if self._expected():
                raise RulesError(
                    f"the count of rounds ({FILE}) is gone, though the audit log has rounds that were counted: put it "
                    "back from a backup, or move the audit log away too, to start from zero; nothing is trained"
                ) from None
            return Counted()
        except (OSError, RunFolderError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RulesError(f"the count of rounds cannot be read: {reason}; nothing is trained") from None
        try:
            tree = json.loads(content)
            found = Counted.model_validate(tree["counted"])
            whole = tree["sha256"] == _digest(found) and len(content) <= LARGEST
        except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
            whole = False
        if not whole:
            raise RulesError(
                f"the count of rounds ({FILE}) is damaged, so nobody knows what was trained: put it back from a "
                "backup; nothing is trained"
            )
        return found


def _check(rules: Rules, after: Counted, run: str, steps: int | None, examples: int) -> None:
    if rules.rounds is not None and after.rounds > rules.rounds:
        raise broken("rounds", "no more rounds of training on this site's data")
    if rules.rounds_per_run is not None and after.runs[run] > rules.rounds_per_run:
        raise broken("rounds_per_run", "no more rounds of training in this run")
    if rules.steps is not None and after.steps > rules.steps:
        raise broken("steps", f"not {steps} more steps on this site's data")
    if rules.epochs is not None and after.sequences > rules.epochs * examples:
        raise broken("epochs", "not so many more passes over this site's data")


def _written(counted: Counted) -> bytes:
    content = {"counted": counted.model_dump(), "sha256": _digest(counted)}
    return (json.dumps(content, indent=1) + "\n").encode()


def _digest(counted: Counted) -> str:
    return hashlib.sha256(counted.model_dump_json().encode()).hexdigest()

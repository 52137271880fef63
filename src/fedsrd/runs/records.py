"""What rounds.jsonl and summary.json hold, typed; and how both are read and written.

A file says its format once, under "format": `rounds.jsonl` in its first object (round 0), as it is replaced as a whole
and so all of its lines are of one format; `summary.json` at its top. A file that says none is older, and of format 1.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from fedsrd.errors import RunFolderError
from fedsrd.explain import explain

FORMAT = 1
"""Of what this version writes. A new one whenever an older fedsrd would misread the file."""


def _number_or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Score = Annotated[float, Field(allow_inf_nan=True), PlainSerializer(_number_or_null)]
"""A float that may be no number; in a file it is null then, as JSON has no NaN and no infinity."""
Nats = Annotated[Score, BeforeValidator(_nan_for_null)]
"""A loss. A model that has diverged has one that is no number, and that is a result: NaN here, null in a file."""
Metrics = dict[str, int | Score | str | None]
"""One benchmark's row as lm-eval has it: "acc,none", "acc_stderr,none", "sample_len", "alias", ..."""


class Stored(BaseModel):
    """What is kept as one JSON object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The JSON object: whatever was given, in the fields' order, without defaults."""
        return self.model_dump(exclude_unset=True)


class Sample(Stored):
    """One held-out prompt, what was wanted, and what the model answered."""

    prompt: str
    wanted: str
    answer: str


class Guarantee(Stored):
    """(epsilon, delta)-differential privacy of a client's examples, up to a round of a run."""

    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


class RoundRecord(Stored):
    """One round. Round 0 is the start that every client got, with the base model's quality.

    Attributes:
        round: its number.
        digest: of the state after it, SHA-256 in hex.
        factor_down: the factors that the broadcast changes: "B", "A", "BA" or ""; round 0 has none.
        bytes_up: each client's accepted uplink, in bytes.
        bytes_down: what each client was sent, in bytes.
        density_up: share of elements that clients sent, by group of modules and factor ("q_proj.B").
        density_up_by_layer: the same by layer and factor ("11.B").
        density_down: as `density_up`, of the broadcast.
        seconds: by phase, all clients added up, as far as they told; round 0 has none.
        train_loss: mean of the clients' that told any, nats a token; None in round 0.
        train_loss_by_client: each client's; NaN (null in the file) of one that told none, or none that can be.
        privacy: what the run has given away of each client's examples, as it says, with this round; of those that
            train under differential privacy.
        privacy_of_clients: what it has given away of each client as a whole; None: nothing is promised.
        rejected: why a client's update did not count.
        attempts: how many times clients were asked.
        eval: response NLL by held-out set, nats a token; empty where it was not measured.
        eval_stderr: their standard errors, examples being the units; of sets with two examples and more.
        eval_by_client: the same of each client's own model, where there is no global one.
        benchmarks: a row each, before and after the run.
        samples: answers to held-out prompts by set, before and after the run.
    """

    round: int
    digest: str
    factor_down: str = ""
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    density_up: dict[str, float] = {}
    density_up_by_layer: dict[str, float] = {}
    density_down: dict[str, float] = {}
    seconds: dict[str, float] = {}
    # Null in a file is NaN here too; round 0's None is not written.
    train_loss: Annotated[Score | None, BeforeValidator(_nan_for_null)] = None
    train_loss_by_client: dict[str, Nats] = {}
    privacy: dict[str, Guarantee] = {}
    privacy_of_clients: Guarantee | None = None
    rejected: dict[str, str] = {}
    attempts: int = 1
    eval: dict[str, Nats]
    eval_stderr: dict[str, Nats] = {}
    eval_by_client: dict[str, dict[str, Nats]] = {}
    benchmarks: dict[str, Metrics] = {}
    samples: dict[str, list[Sample]] = {}


class Quality(Stored):
    """Response NLL, nats a token: by set, and the means in and out of domain; None where there is no such set.
    `stderr` is by set, examples being the units.
    """

    by_set: dict[str, Nats]
    in_domain: Nats | None
    out_of_domain: Nats | None
    stderr: dict[str, Nats] = {}


class Summary(Stored):
    """A complete run.

    Attributes:
        name: of the recipe.
        method: its name.
        seed: of the recipe.
        rounds: how many there were.
        clients: how many took part.
        parameters: of the adapter.
        bytes_up: of all clients and rounds.
        bytes_down: likewise down.
        ratio_to_dense_float32: bytes, up and down, over those of sending every parameter both ways to whoever took
            part; None where nothing was sent.
        ratio_to_dense_bfloat16: the same against bfloat16.
        seconds: by phase, all clients and rounds added up.
        metric: what `base` and `final` are.
        base: quality before the first round; None where it was not measured.
        final: quality after the last.
        benchmarks: the rows before ("base") and after ("final"); empty where none were measured.
        privacy: what the run has given away of each client's examples, of those that promise anything.
        privacy_of_clients: what it has given away of each client as a whole; None: nothing is promised.
        digest: of the last state.
    """

    name: str
    method: str
    seed: int
    rounds: int
    clients: int
    parameters: int
    bytes_up: int
    bytes_down: int
    ratio_to_dense_float32: float | None
    ratio_to_dense_bfloat16: float | None
    seconds: dict[str, float]
    metric: str
    base: Quality | None
    final: Quality | None
    benchmarks: dict[str, dict[str, Metrics]] = {}
    privacy: dict[str, Guarantee] = {}
    privacy_of_clients: Guarantee | None = None
    digest: str


def rounds_text(records: Sequence[RoundRecord]) -> str:
    """The content of rounds.jsonl."""
    trees = [record.plain() for record in records]
    trees[:1] = [{"format": FORMAT, **tree} for tree in trees[:1]]
    return "".join(json.dumps(tree, allow_nan=False) + "\n" for tree in trees)


def summary_text(summary: Summary) -> str:
    """The content of summary.json."""
    return json.dumps({"format": FORMAT, **summary.plain()}, indent=2, allow_nan=False) + "\n"


def read_rounds(path: Path) -> list[RoundRecord]:
    """The records of a rounds.jsonl, round 0 first.

    Raises:
        RunFolderError: there is no such file, a line is damaged, lacks a key or is not of the next round, or a newer
            fedsrd wrote it. The message names the line, and says what to do.
    """
    return parse_rounds(_text(path), str(path))


def parse_rounds(text: str, name: str) -> list[RoundRecord]:
    """The records in the content of a rounds.jsonl, which messages call `name`. Raises RunFolderError as
    `read_rounds`.
    """
    found: list[RoundRecord] = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}, line {number}"
        tree = _tree(line, where)
        if number == 1:
            check_format(tree, where)
        record = checked(RoundRecord, tree, where)
        if record.round != number - 1:
            raise _damaged(where, f"round {record.round}, where round {number - 1} belongs")
        found.append(record)
    return found


def read_summary(path: Path) -> Summary:
    """What a summary.json holds. Raises RunFolderError as `read_rounds`."""
    return checked(Summary, read_tree(path), str(path))


def check_format(tree: dict[str, Any], where: str) -> None:
    """Takes "format" out of an object.

    Raises:
        RunFolderError: it is newer than this version reads, or no format at all.
    """
    found = tree.pop("format", 1)
    if not isinstance(found, int) or found < 1:
        raise _damaged(where, f"format {found!r} is none")
    if found > FORMAT:
        raise RunFolderError(
            f"{where}: written by a newer fedsrd (format {found}, this one reads up to {FORMAT}); upgrade: "
            "pip install --upgrade fedsrd"
        )


Kind = TypeVar("Kind", bound=BaseModel)


def checked(kind: type[Kind], tree: Mapping[str, Any], where: str) -> Kind:
    """An object as a model. Raises RunFolderError, naming `where` and the keys that are missing, unknown or wrong."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _damaged(where, "; ".join(line.strip() for line in explain(error, ""))) from None


def read_tree(path: Path) -> dict[str, Any]:
    """A file's one JSON object, its format checked and taken out. Raises RunFolderError as `read_rounds`."""
    tree = _tree(_text(path), str(path))
    check_format(tree, str(path))
    return tree


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFolderError(f"{path}: no such file; expected one that fedsrd wrote") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _tree(text: str, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise _damaged(where, f"expected a JSON object, found {type(tree).__name__}")
    return tree


def _damaged(where: str, what: str) -> RunFolderError:
    return RunFolderError(
        f"{where}: {what}; the file is not as fedsrd wrote it: put a copy in its place, or run again into a new folder"
    )

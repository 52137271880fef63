"""Our messages as Flower records: one JSON note, and all payload bytes of a direction in one Array.

One Array, because Flower sends every one on its own: 448 small ones took ten times as long as one (flwr 1.41). The note
is small and checked field by field; nothing is unpickled, and no size is believed before it is compared with what came.
"""

import itertools
import json
from typing import Annotated, Any, Literal, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsrd.core.factors import ModuleShape, ShapeTable
from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Broadcast, Snapshot, Start, Sync
from fedsrd.recipe import DataSection, Name
from fedsrd.wire.coding import Coding

PROTOCOL = 1
NOTE = "fedsrd.note"
PAYLOADS = "fedsrd.payloads"
NOTE_LIMIT = 4 << 20
"""Longest note that is read, in bytes."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]
Version = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Setting = bool | int | float | str
Settings = dict[str, Setting | list[bool] | list[int] | list[float] | list[str]]
Federation = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Note(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StartNote(_Note):
    """Of a `Start`."""

    digest: Digest
    size: Size


class SnapshotNote(_Note):
    """Of a `Snapshot`."""

    version: Version
    digest: Digest
    size: Size
    base: Size


class BroadcastNote(_Note):
    """Of a `Broadcast`."""

    round: Version
    version: Version
    digest: Digest
    clients: Annotated[int, Field(ge=1)]
    size: Size


class SyncNote(_Note):
    """Of a `Sync`; its payloads follow one another in the Array, in the order of the fields."""

    start: StartNote | None = None
    snapshot: SnapshotNote | None = None
    broadcasts: list[BroadcastNote] = []


class Work(_Note):
    """What a client must know of the recipe.

    Attributes:
        method: the [method] table.
        seed: the run's.
        uplink: how updates are coded.
        rank: the client's own, if not the adapter's.
        recipe: the tables model, lora and training; None where the client's own code trains.
        data: where the recipe says that its data is; a site's own setting goes first (`site`).
        modules: name, out_features, in_features and rank of each adapted module, where the client's own code trains.
        train_config: what the server's project tells such a train function, besides.
        evaluate_config: likewise its evaluate function.
    """

    method: dict[str, Any]
    seed: int
    uplink: Coding
    rank: Annotated[int, Field(ge=1)] | None = None
    recipe: dict[str, Any] | None = None
    data: list[DataSection] = []
    modules: list[tuple[str, int, int, int]] = []
    train_config: Settings = {}
    evaluate_config: Settings = {}

    def table(self) -> ShapeTable:
        """Of `modules`."""
        return ShapeTable(tuple(ModuleShape(*module) for module in self.modules))


class Greeting(_Note):
    """To a client: who are you? `names` are those of the recipe, for simulated clients, who have only a number."""

    kind: Literal["greeting"] = "greeting"
    protocol: int = PROTOCOL
    federation: Federation
    names: list[Name]


class Present(_Note):
    """From a client: its name, the version that it holds (-1: none), and that state's digest ("": none)."""

    kind: Literal["present"] = "present"
    protocol: int = PROTOCOL
    name: Name
    held: int
    digest: str


class _Order(_Note):
    """To a client, whose name it says. With `reset`, what it holds is not of this run."""

    protocol: int = PROTOCOL
    federation: Federation
    name: Name
    reset: bool
    work: Work
    sync: SyncNote


class Task(_Order):
    """A `TrainTask`."""

    kind: Literal["task"] = "task"
    round: Version
    version: Version
    digest: Digest


class Phases(_Note):
    """Seconds of a client's phases."""

    train: Seconds
    sparsify: Seconds
    encode: Seconds


class Answer(_Note):
    """From a client: an `Update`, or where `failure` is set, a `Failure`. `held` is the version that it holds."""

    kind: Literal["answer"] = "answer"
    name: Name
    round: Version
    held: int
    examples: Size = 0
    loss: float = 0.0
    seconds: Phases = Phases(train=0, sparsify=0, encode=0)
    failure: str | None = None
    lost: bool = False


class Settle(_Order):
    """After the last round: come to the newest version."""

    kind: Literal["settle"] = "settle"


class Look(_Order):
    """Between rounds: come to the newest version, and say how good it is on the client's own data."""

    kind: Literal["look"] = "look"
    round: Version


class Settled(_Note):
    """From a client: what it holds, or why it could not follow; with `Look`, the metrics lie beside the note."""

    kind: Literal["settled"] = "settled"
    name: Name
    held: int
    digest: str
    failure: str | None = None


Kind = TypeVar("Kind", bound=_Note)


def pack(note: BaseModel, payload: bytes = b"") -> RecordDict:
    """A note and its payloads as the content of a message."""
    content = RecordDict({NOTE: ConfigRecord({"json": note.model_dump_json()})})
    if payload:
        content[PAYLOADS] = ArrayRecord({"bytes": Array("uint8", (len(payload),), "fedsrd.bytes", payload)})
    return content


def kind_of(content: RecordDict) -> str:
    """The kind of a message's note. Raises PayloadError as `unpack`."""
    try:
        kind = json.loads(_text(content))["kind"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PayloadError("the message's note is no JSON object with a kind") from None
    return str(kind)


def unpack(content: RecordDict, kind: type[Kind]) -> tuple[Kind, bytes]:
    """The inverse of `pack`.

    Raises:
        PayloadError: there is no such note, or a field of it is missing, unknown or wrong.
    """
    try:
        note = kind.model_validate_json(_text(content))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise PayloadError(
            f"a {kind.__name__.lower()} note is wrong at {where or 'its start'}: {problem['msg']}"
        ) from None
    protocol = getattr(note, "protocol", PROTOCOL)
    if protocol != PROTOCOL:
        raise PayloadError(
            f"the other side speaks protocol {protocol}, this one {PROTOCOL}: install one version of fedsrd"
        )
    arrays = content.array_records.get(PAYLOADS)
    return note, b"" if arrays is None or "bytes" not in arrays else arrays["bytes"].data


def note_of_sync(sync: Sync) -> tuple[SyncNote, bytes]:
    """A `Sync` as a note and its payloads."""
    parts = []
    start = snapshot = None
    if sync.start is not None:
        start = StartNote(digest=sync.start.digest, size=len(sync.start.payload))
        parts.append(sync.start.payload)
    if sync.snapshot is not None:
        found = sync.snapshot
        snapshot = SnapshotNote(
            version=found.version, digest=found.digest, size=len(found.payload), base=len(found.base)
        )
        parts += [found.payload, found.base]
    broadcasts = [
        BroadcastNote(round=b.round, version=b.version, digest=b.digest, clients=b.clients, size=len(b.payload))
        for b in sync.broadcasts
    ]
    parts += [broadcast.payload for broadcast in sync.broadcasts]
    return SyncNote(start=start, snapshot=snapshot, broadcasts=broadcasts), b"".join(parts)


def sync_of_note(note: SyncNote, payload: bytes) -> Sync:
    """The inverse of `note_of_sync`.

    Raises:
        PayloadError: the sizes in the note do not add up to what came.
    """
    sizes = [note.start.size] if note.start else []
    sizes += [note.snapshot.size, note.snapshot.base] if note.snapshot else []
    sizes += [broadcast.size for broadcast in note.broadcasts]
    if sum(sizes) != len(payload):
        raise PayloadError(f"the note tells of {sum(sizes)} bytes of payloads, {len(payload)} came")
    ends = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    parts = iter([payload[low:high] for low, high in itertools.pairwise(ends)])
    start = Start(next(parts), note.start.digest) if note.start else None
    snapshot = None
    if note.snapshot:
        snapshot = Snapshot(note.snapshot.version, next(parts), next(parts), note.snapshot.digest)
    broadcasts = tuple(Broadcast(b.round, b.version, next(parts), b.digest, b.clients) for b in note.broadcasts)
    return Sync(start, snapshot, broadcasts)


def _text(content: RecordDict) -> str:
    record = content.config_records.get(NOTE)
    text = None if record is None else record.get("json")
    if not isinstance(text, str):
        raise PayloadError("the message is not one of FedSRD's: is the same app at both ends?")
    if len(text) > NOTE_LIMIT:
        raise PayloadError(f"the message's note has {len(text)} characters, more than {NOTE_LIMIT}")
    return text

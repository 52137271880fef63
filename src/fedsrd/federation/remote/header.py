"""What crosses a network: a header in JSON, and all payload bytes of a direction behind it, whatever carries both.

The header is small and checked field by field; nothing is unpickled, and no size is believed before it is compared with
what came.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fedsrd.core.lora import modules_of
from fedsrd.core.tensors import TensorSpec, TensorTable
from fedsrd.errors import PayloadError
from fedsrd.federation.messages import (
    MOST_BROADCASTS,
    MOST_EXAMPLES,
    Broadcast,
    Delta,
    Epsilon,
    Loss,
    Phases,
    Snapshot,
    Start,
    Sync,
)
from fedsrd.federation.secure_messages import Phase
from fedsrd.privacy.options import ClientPrivacy
from fedsrd.recipe import DataSection, Name, PublicKey
from fedsrd.text import foreign
from fedsrd.wire.options import SumOptions, WireOptions

PROTOCOL = 4
"""1 and 2 bound no name to a key, 3 knew no sums; they are refused."""
LIMIT = 4 << 20
"""Longest header that is read, in characters."""
MOST_DIMENSIONS = 16
_RUN = re.compile(r"[0-9a-f]{16}")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DigestOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Size = Annotated[int, Field(ge=0)]
Version = Annotated[int, Field(ge=0, lt=1 << 32)]
Held = Annotated[int, Field(ge=-1, lt=1 << 32)]
Setting = bool | int | float | str
Settings = dict[str, Setting | list[bool] | list[int] | list[float] | list[str]]
Said = Annotated[str, AfterValidator(foreign)]
Federation = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecordNames(Header):
    """What a project's own functions find their arrays and config under, and what weighs their metrics."""

    arrays: Annotated[str, Field(min_length=1, max_length=100)] = "arrays"
    config: Annotated[str, Field(min_length=1, max_length=100)] = "config"
    weight: Annotated[str, Field(min_length=1, max_length=100)] = "num-examples"


class StartHeader(Header):
    """Of a `Start`."""

    digest: Digest
    size: Size


class SnapshotHeader(Header):
    """Of a `Snapshot`."""

    version: Version
    digest: Digest
    size: Size
    base: Size


class BroadcastHeader(Header):
    """Of a `Broadcast`."""

    round: Version
    version: Version
    digest: Digest
    clients: Annotated[int, Field(ge=1, lt=1 << 32)]
    size: Size


class SyncHeader(Header):
    """Of a `Sync`; its payloads follow one another, in the order of the fields."""

    start: StartHeader | None = None
    snapshot: SnapshotHeader | None = None
    broadcasts: Annotated[list[BroadcastHeader], Field(max_length=MOST_BROADCASTS)] = []
    counted: Version = 0


def _table(specs: list[TensorSpec]) -> list[TensorSpec]:
    """Tensors that can be a table's: so that nothing behind this meets a shape that is none."""
    for spec in specs:
        if len(spec.shape) > MOST_DIMENSIONS or not all(0 <= side < 1 << 32 for side in spec.shape):
            raise ValueError(f"{spec.name[:64]!r} has a shape that no tensor has")
        if spec.role != TensorSpec.named(spec.name, spec.shape).role:
            raise ValueError(f"{spec.name[:64]!r} is called {spec.role}, which its name and shape do not say")
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError("two tensors have one name")
    modules_of(TensorTable(tuple(specs)))
    return specs


class Job(Header):
    """What a client must know of the recipe.

    Attributes:
        method: the [method] table.
        seed: the run's.
        uplink: how updates are coded.
        sum: how updates are added up as integers; None: they are not.
        noise: what every client adds to its integers; None: nothing.
        shares: of the noise that a sum has at least.
        rank: the client's own, if not the adapter's.
        clip: L2 norm to which an update is scaled down; None: as it is.
        recipe: the tables model, lora, training and privacy, and the rounds; None where the client's own code trains.
        data: where the recipe says that its data is; a site's own setting goes first (`site`).
        tensors: name, shape and role of each trained tensor, where the client's own code trains.
        records: what such code calls its records and its number of examples.
        train_config: what the server's project tells such a train function, besides.
        evaluate_config: likewise its evaluate function.
    """

    method: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    uplink: WireOptions
    sum: SumOptions | None = None
    noise: ClientPrivacy | None = None
    shares: Annotated[int, Field(ge=2, le=1 << 16)] = 2
    rank: Annotated[int, Field(ge=1)] | None = None
    clip: Annotated[float, Field(gt=0, le=1e12)] | None = None
    recipe: dict[str, Any] | None = None
    data: list[DataSection] = []
    tensors: Annotated[list[TensorSpec], AfterValidator(_table)] = []
    records: RecordNames = RecordNames()
    train_config: Settings = {}
    evaluate_config: Settings = {}

    def table(self) -> TensorTable:
        """Of `tensors`."""
        return TensorTable(tuple(self.tensors))


class Hello(Header):
    """To a client: who are you?

    Attributes:
        names: those of the recipe, for simulated clients, who have only a number.
        node: the carrier's number of whom this is for.
        nonce: never used before; what a site signs (`identity`).
    """

    kind: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    federation: Federation
    names: list[Name]
    node: Annotated[int, Field(ge=0, lt=1 << 64)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class HelloReply(Header):
    """From a client: its name, the version that it holds (-1: none), and that state's digest ("": none); from one that
    has a key, its public half and the signature of `identity.statement`.
    """

    kind: Literal["hello-reply"] = "hello-reply"
    protocol: int = PROTOCOL
    name: Name
    held: Held
    digest: DigestOrNone
    key: PublicKey | None = None
    signature: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{86}==)?$")] = ""


class Order(Header):
    """To a client, whose name it says. With `reset`, what it holds is not of this run."""

    protocol: int = PROTOCOL
    federation: Federation
    name: Name
    reset: bool
    job: Job
    sync: SyncHeader


class SumTerms(Header):
    """`sums.Terms`."""

    clients: Annotated[int, Field(ge=1, le=1 << 16)]
    steps: Annotated[list[Annotated[int, Field(ge=1, lt=0x7F80)]], Field(max_length=1 << 20)]


class Train(Order):
    """A `TrainTask`; the inbox's bytes come before the sync's."""

    kind: Literal["train"] = "train"
    round: Version
    version: Version
    digest: Digest
    sum: SumTerms | None = None
    inbox: Size = 0


class Secure(Header):
    """To a client: its part of a phase of secure aggregation; the question is the payload."""

    kind: Literal["secure"] = "secure"
    protocol: int = PROTOCOL
    federation: Federation
    name: Name
    round: Version
    phase: Phase


class SecureReply(Header):
    """From a client: its answer is the payload; or why there is none."""

    kind: Literal["secure-reply"] = "secure-reply"
    name: Name
    round: Version
    phase: Phase
    failure: Said | None = None


class TrainReply(Header):
    """From a client: an `Update`, or where `failure` is set, a `Failure`. `held` is the version that it holds. What it
    says about itself is as in `messages.Claims`; None and no times: not told.
    """

    kind: Literal["train-reply"] = "train-reply"
    name: Name
    round: Version
    held: Held
    examples: Annotated[int, Field(ge=0, le=MOST_EXAMPLES)] | None = 0
    loss: Loss = None
    seconds: Phases = Phases()
    epsilon: Epsilon = None
    delta: Delta = None
    masked: bool = False
    failure: Said | None = None
    lost: bool = False


class Finalize(Order):
    """After the last round: come to the newest version."""

    kind: Literal["finalize"] = "finalize"


class Evaluate(Order):
    """Between rounds: come to the newest version, and say how good it is on the client's own data."""

    kind: Literal["evaluate"] = "evaluate"
    round: Version


class SyncReply(Header):
    """From a client: what it holds, or why it could not follow; with `Evaluate`, the metrics lie beside it."""

    kind: Literal["sync-reply"] = "sync-reply"
    name: Name
    held: Held
    digest: DigestOrNone
    failure: Said | None = None


Kind = TypeVar("Kind", bound=Header)


@dataclass(frozen=True, slots=True)
class About:
    """What a message says that it is about, as far as that can be: run "", round None where it does not."""

    run: str = ""
    round: int | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: the header as JSON text, the payload bytes behind it."""

    text: str
    payload: bytes = b""


def pack(header: Header, payload: bytes = b"") -> Envelope:
    """A header and its payloads as a message."""
    return Envelope(header.model_dump_json(), payload)


def kind_of(message: Envelope) -> str:
    """The kind of a message. Raises PayloadError as `unpack`."""
    try:
        return foreign(_Kind.model_validate_json(_text(message)).kind, 100)
    except ValidationError:
        raise PayloadError("the message's header is no JSON object with a kind") from None


def about(message: Envelope) -> About:
    """What any message is about, damaged ones too."""
    try:
        found = _AnyAbout.model_validate_json(_text(message))
    except (ValidationError, PayloadError):
        return About()
    run, number = found.federation, found.round
    return About(
        run if isinstance(run, str) and _RUN.fullmatch(run) else "",
        number if isinstance(number, int) and 0 <= number < 1 << 32 else None,
    )


def unpack(message: Envelope, kind: type[Kind]) -> tuple[Kind, bytes]:
    """The inverse of `pack`.

    Raises:
        PayloadError: there is no such header, or a field of it is missing, unknown or wrong.
    """
    try:
        header = kind.model_validate_json(_text(message))
    except ValidationError as error:
        # Of another protocol nothing else need be right.
        _speaks_ours(_spoken(message))
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        text = f"a {kind.__name__} header is wrong at {foreign(where, 100) or 'its start'}: {problem['msg']}"
        raise PayloadError(foreign(text)) from None
    _speaks_ours(getattr(header, "protocol", PROTOCOL))
    return header, message.payload


def header_of_sync(sync: Sync) -> tuple[SyncHeader, bytes]:
    """A `Sync` as a header and its payloads."""
    parts = []
    start = snapshot = None
    if sync.start is not None:
        start = StartHeader(digest=sync.start.digest, size=len(sync.start.payload))
        parts.append(sync.start.payload)
    if sync.snapshot is not None:
        found = sync.snapshot
        snapshot = SnapshotHeader(
            version=found.version, digest=found.digest, size=len(found.payload), base=len(found.base)
        )
        parts += [found.payload, found.base]
    broadcasts = [
        BroadcastHeader(round=b.round, version=b.version, digest=b.digest, clients=b.clients, size=len(b.payload))
        for b in sync.broadcasts
    ]
    parts += [broadcast.payload for broadcast in sync.broadcasts]
    return SyncHeader(start=start, snapshot=snapshot, broadcasts=broadcasts, counted=sync.counted), b"".join(parts)


def sync_of_header(header: SyncHeader, payload: bytes) -> Sync:
    """The inverse of `header_of_sync`.

    Raises:
        PayloadError: the sizes in the header do not add up to what came.
    """
    sizes = [header.start.size] if header.start else []
    sizes += [header.snapshot.size, header.snapshot.base] if header.snapshot else []
    sizes += [broadcast.size for broadcast in header.broadcasts]
    if sum(sizes) != len(payload):
        raise PayloadError(f"the header tells of {sum(sizes)} bytes of payloads, {len(payload)} came")
    ends = itertools.accumulate(sizes, initial=0)
    parts = iter([payload[low:high] for low, high in itertools.pairwise(ends)])
    start = Start(next(parts), header.start.digest) if header.start else None
    snapshot = None
    if header.snapshot:
        snapshot = Snapshot(header.snapshot.version, next(parts), next(parts), header.snapshot.digest)
    broadcasts = tuple(Broadcast(b.round, b.version, next(parts), b.digest, b.clients) for b in header.broadcasts)
    return Sync(start, snapshot, broadcasts, header.counted)


class _Kind(BaseModel):
    """What every header says, whatever else it is."""

    kind: str


class _AnyAbout(BaseModel):
    """What a header may say that it is about, whatever it says."""

    federation: Any = None
    round: Any = None


class _Spoken(BaseModel):
    """What a header of any version may say."""

    protocol: int = PROTOCOL


def _spoken(message: Envelope) -> int:
    try:
        return _Spoken.model_validate_json(message.text).protocol
    except ValidationError:
        return PROTOCOL


def _speaks_ours(protocol: int) -> None:
    if protocol != PROTOCOL:
        raise PayloadError(
            f"the other side speaks protocol {protocol}, this one {PROTOCOL}: install one version of fedsrd"
        )


def _text(message: Envelope) -> str:
    if len(message.text) > LIMIT:
        raise PayloadError(f"the message's header has {len(message.text)} characters, more than {LIMIT}")
    return message.text

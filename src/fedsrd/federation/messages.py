"""What crosses between client and server. Updates are bytes of `wire`; the rest is small and typed."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator

from fedsrd.errors import PayloadError
from fedsrd.explain import in_words
from fedsrd.federation.sums import Terms
from fedsrd.text import foreign

MOST_EXAMPLES = 10**9
LARGEST_LOSS = 1e6
LONGEST_PHASE = 1e7
"""Seconds; four months."""


def _or_none(value: Any, read: Callable[[Any], float | None]) -> float | None:
    try:
        return read(value)
    except ValidationError:
        return None


Examples = Annotated[int, Field(ge=1, le=MOST_EXAMPLES)]
Loss = Annotated[
    Annotated[float, Field(ge=-LARGEST_LOSS, le=LARGEST_LOSS, allow_inf_nan=False)] | None, WrapValidator(_or_none)
]
"""Mean training loss a response token, in nats; None: not told, or no loss that can be."""
Seconds = Annotated[
    Annotated[float, Field(ge=0, le=LONGEST_PHASE, allow_inf_nan=False)] | None, WrapValidator(_or_none)
]
"""Of one phase; None: not told, or no time that can be."""


class Phases(BaseModel):
    """Seconds of a client's phases in a round; others that it may tell of are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    train: Seconds = None
    sparsify: Seconds = None
    encode: Seconds = None

    def told(self) -> dict[str, float]:
        """The phases that it told of."""
        return {phase: value for phase, value in self.model_dump().items() if value is not None}


Epsilon = Annotated[Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None, WrapValidator(_or_none)]
"""What a client says that it has given away of its examples; None: nothing is promised, or nothing that can be."""
Delta = Annotated[Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None, WrapValidator(_or_none)]
"""The delta of that epsilon."""


class Claims(BaseModel):
    """All numbers that a client says about itself with an update; nobody can check them, so they are bounded.

    The number of examples decides how much the update counts: one that is out of range is an error. Loss and seconds
    are only shown: where they are out of range they count as not told.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    examples: Examples | None
    loss: Loss = None
    seconds: Phases = Phases()
    epsilon: Epsilon = None
    delta: Delta = None


MOST_BROADCASTS = 4096
"""In one message: who has missed more rounds than that gets the whole state."""


@dataclass(frozen=True, slots=True)
class Start:
    """To every client, once: the seed of the common start (a start payload) and the digest of its expansion."""

    payload: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Update:
    """From a client: its update as an uplink payload.

    Attributes:
        client: its name.
        round: the round of the task.
        examples: number of its training examples, for weighting; None: not told.
        payload: the uplink.
        loss: mean training loss a response token, in nats; None: not told.
        seconds: by phase: train, sparsify, encode, as far as told.
        epsilon: what this run has given away of the client's examples, this round included; None: nothing is promised.
        delta: of that epsilon.
        metrics: what the client's own training code says besides; only shown.
    """

    client: str
    round: int
    examples: int | None
    payload: bytes
    loss: float | None
    seconds: dict[str, float]
    epsilon: float | None = None
    delta: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> "Update":
        """The same with what the client says about itself read as `Claims`.

        Raises:
            PayloadError: its number of examples is told, and none that can be.
        """
        try:
            said = Claims.model_validate({name: getattr(self, name) for name in Claims.model_fields})
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise PayloadError(f"what the client says about itself is wrong at {where}: {in_words(problem)}") from None
        claims = {name: getattr(said, name) for name in Claims.model_fields}
        return dataclasses.replace(self, **{**claims, "seconds": said.seconds.told()})


@dataclass(frozen=True, slots=True)
class Failure:
    """From a client, or about one: nothing usable this round, and why.

    `lost` says that its replica is not what the server takes it for, so that it needs the whole state.
    """

    client: str
    round: int
    reason: str
    lost: bool = False

    def __post_init__(self) -> None:
        # Records, report, log and terminal get it from here, whoever wrote it.
        object.__setattr__(self, "reason", foreign(self.reason))


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every client: the round's downlink payload, the version that it leads to, and that state's digest.

    `clients` is the number of updates that it aggregates: some methods' shapes follow from it.
    """

    round: int
    version: int
    payload: bytes
    digest: str
    clients: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """To a client: a whole state.

    Attributes:
        version: of the state.
        payload: the factors.
        base: the change of the frozen weights; empty where there is none.
        digest: of the state.
    """

    version: int
    payload: bytes
    base: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Sync:
    """To a client: what brings its replica to the newest version: a start or a snapshot or neither, then broadcasts.

    `counted` is the last round in which the client's own update was aggregated, 0 for none: what it keeps between
    rounds must be that of this round.
    """

    start: Start | None = None
    snapshot: Snapshot | None = None
    broadcasts: tuple[Broadcast, ...] = ()
    counted: int = 0

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        first = len(self.start.payload) if self.start else 0
        whole = len(self.snapshot.payload) + len(self.snapshot.base) if self.snapshot else 0
        return first + whole + sum(len(broadcast.payload) for broadcast in self.broadcasts)


@dataclass(frozen=True, slots=True)
class TrainTask:
    """To a client: train this round from this version of the global state, whose digest must be this.

    Attributes:
        round: from 1.
        version: of the state.
        digest: of the state.
        sync: brings a replica that is behind to that version.
        sum: what the client must know of the round's sum, where updates are added up as integers.
        inbox: of the session of secure aggregation that the update is masked for (`privacy.secure.Inbox`); empty where
            it is not masked.
    """

    round: int
    version: int
    digest: str
    sync: Sync = Sync()
    sum: Terms | None = None
    inbox: bytes = b""


@dataclass(frozen=True, slots=True)
class Held:
    """What an engine has learnt of a client: the version that its replica holds (-1: none) and that state's digest
    (None: not known).
    """

    client: str
    version: int
    digest: str | None = None

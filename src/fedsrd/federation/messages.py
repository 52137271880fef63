"""What crosses between client and server. Updates are bytes of `wire`; the rest is small and typed."""

from dataclasses import dataclass

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
        examples: number of its training examples, for weighting.
        payload: the uplink.
        loss: mean training loss a response token, in nats.
        seconds: by phase: train, sparsify, encode.
    """

    client: str
    round: int
    examples: int
    payload: bytes
    loss: float
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """From a client, or about one: nothing usable this round, and why.

    `lost` says that its replica is not what the server takes it for, so that it needs the whole state.
    """

    client: str
    round: int
    reason: str
    lost: bool = False


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

    `sync` brings a replica that is behind to that version.
    """

    round: int
    version: int
    digest: str
    sync: Sync = Sync()


@dataclass(frozen=True, slots=True)
class Held:
    """What an engine has learnt of a client: the version that its replica holds (-1: none) and that state's digest
    (None: not known).
    """

    client: str
    version: int
    digest: str | None = None

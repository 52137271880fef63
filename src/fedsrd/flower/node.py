"""The client's end of the protocol: a message in, a message out; between them, the same `Client` as in one process."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flwr.app import Context, Message, RecordDict

from fedsrd import plugins
from fedsrd.core.factors import ShapeTable
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation.client import Client, Trained, Trainer
from fedsrd.federation.messages import Failure, TrainTask
from fedsrd.federation.setup import method_of
from fedsrd.flower import notes
from fedsrd.flower.log import Log
from fedsrd.flower.replica import Replica
from fedsrd.flower.site import Site, site_of

Order = TypeVar("Order", notes.Task, notes.Look, notes.Settle)


class Workshop(Protocol):
    """How a client gets at its model and its data.

    Attributes:
        strict: whether the node config holds nothing but our own keys.
    """

    @property
    def strict(self) -> bool: ...

    def table(self, work: notes.Work) -> ShapeTable:
        """The adapter's shapes."""

    def trainer(self, work: notes.Work, site: Site) -> Trainer:
        """Local training; called only where there is something to train."""

    def look(self, client: Client, work: notes.Work, round_number: int) -> RecordDict:
        """Metrics of the model that the client holds, on its own data."""

    def finish(self, client: Client, work: notes.Work, site: Site, replica: Replica) -> None:
        """After the last round."""


def respond(message: Message, context: Context, workshop: Workshop) -> Message:
    """The answer to one of the server's messages.

    Raises:
        PayloadError: the message is not one of ours, or damaged.
        FedSRDError: the site's settings or data are wrong; Flower tells the server, which goes on without this client.
    """
    if (module := context.node_config.get("import")) is not None:
        plugins.load(str(module))
    handlers: dict[str, Callable[[Message, Context, Workshop], Message]] = {
        "greeting": _greeting,
        "task": _task,
        "look": _look,
        "settle": _settle,
    }
    kind = notes.kind_of(message.content)
    if kind not in handlers:
        raise PayloadError(f"a message of kind {kind!r}: expected one of {', '.join(handlers)}")
    return handlers[kind](message, context, workshop)


def _greeting(message: Message, context: Context, workshop: Workshop) -> Message:
    note, _ = notes.unpack(message.content, notes.Greeting)
    site = site_of(context.node_config, note.names, strict=workshop.strict)
    held = Replica(site.state, note.federation, site.name).read()
    present = notes.Present(
        name=site.name, held=-1 if held is None else held.version, digest="" if held is None else held.digest
    )
    return Message(notes.pack(present), reply_to=message)


def _task(message: Message, context: Context, workshop: Workshop) -> Message:
    note, payload, site, replica = _opened(message, context, workshop, notes.Task)
    log = Log(replica.folder / "log.jsonl")
    with replica.locked():
        client = _client(note.work, site, workshop)
        if not note.reset:
            replica.load(client)
        sync = notes.sync_of_note(note.sync, payload)
        log.write("task", round=note.round, held=client.version, bytes=len(payload))
        if note.version < client.version:
            # An old message: what is held is newer, and stays.
            reason = f"a task of version {note.version} came late: version {client.version} is held"
            answer: Any = Failure(site.name, note.round, reason)
        else:
            answer = client.answer(TrainTask(note.round, note.version, note.digest, sync), lambda *_: None)
            replica.save(client)
    if isinstance(answer, Failure):
        log.write("failure", round=note.round, reason=answer.reason)
        said = notes.Answer(
            name=site.name, round=note.round, held=client.version, failure=answer.reason, lost=answer.lost
        )
        return Message(notes.pack(said), reply_to=message)
    log.write("update", round=note.round, bytes=len(answer.payload), loss=answer.loss, seconds=answer.seconds)
    said = notes.Answer(
        name=site.name,
        round=note.round,
        held=client.version,
        examples=answer.examples,
        loss=answer.loss,
        seconds=notes.Phases(**answer.seconds),
    )
    return Message(notes.pack(said, answer.payload), reply_to=message)


def _look(message: Message, context: Context, workshop: Workshop) -> Message:
    note, payload, site, replica = _opened(message, context, workshop, notes.Look)
    with replica.locked():
        client, said = _follow(note, payload, site, replica, workshop)
    content = notes.pack(said)
    if said.failure is None:
        content.update(workshop.look(client, note.work, note.round))
    return Message(content, reply_to=message)


def _settle(message: Message, context: Context, workshop: Workshop) -> Message:
    note, payload, site, replica = _opened(message, context, workshop, notes.Settle)
    with replica.locked():
        client, said = _follow(note, payload, site, replica, workshop)
        if said.failure is None:
            workshop.finish(client, note.work, site, replica)
    return Message(notes.pack(said), reply_to=message)


def _opened(
    message: Message, context: Context, workshop: Workshop, kind: type[Order]
) -> tuple[Order, bytes, Site, Replica]:
    """An order, its payloads, and whom it is for. Raises PayloadError where that is somebody else."""
    note, payload = notes.unpack(message.content, kind)
    site = site_of(context.node_config, asked=note.name, strict=workshop.strict)
    return note, payload, site, Replica(site.state, note.federation, site.name)


def _follow(
    note: notes.Look | notes.Settle, payload: bytes, site: Site, replica: Replica, workshop: Workshop
) -> tuple[Client, notes.Settled]:
    """Brings the replica to the newest version, on the disk too; gives what it holds now."""
    client = _client(note.work, site, workshop)
    if not note.reset:
        replica.load(client)
    failure = None
    try:
        client.sync(notes.sync_of_note(note.sync, payload))
    except (PayloadError, FederationError) as error:
        failure, client.version = str(error), -1
    replica.save(client)
    digest = client.digest if client.version >= 0 else ""
    Log(replica.folder / "log.jsonl").write(note.kind, held=client.version, digest=digest, failure=failure)
    if failure is None and client.version < 0:
        failure = "nothing is held, and the message brings no start"
    return client, notes.Settled(name=site.name, held=client.version, digest=digest, failure=failure)


def _client(work: notes.Work, site: Site, workshop: Workshop) -> Client:
    trainer = _OnDemand(lambda: workshop.trainer(work, site))
    return Client(site.name, workshop.table(work), method_of(work.method), trainer, work.seed, work.uplink, work.rank)


class _OnDemand:
    """A trainer that is made when it is first asked: a message that trains nothing loads no model."""

    def __init__(self, make: Callable[[], Trainer]) -> None:
        self._make = make
        self._made: Trainer | None = None

    @property
    def _trainer(self) -> Trainer:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def count(self) -> int:
        return self._trainer.count

    def train(self, *args: Any, **more: Any) -> Trained:
        return self._trainer.train(*args, **more)

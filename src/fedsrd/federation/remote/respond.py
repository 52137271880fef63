"""The client's end of the protocol: a message in, a reply out; between them, the same `Client` as in one process."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from fedsrd import plugins
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import FederationError, FedSRDError, PayloadError, RecipeError
from fedsrd.federation.client import NOTHING, Client, Trained, Trainer
from fedsrd.federation.messages import Failure, Phases, TrainTask, Update
from fedsrd.federation.remote import header, identity, masking
from fedsrd.federation.remote.gate import Answer, Gate, Metrics, Reply, asked
from fedsrd.federation.remote.guard import GuardedClient
from fedsrd.federation.remote.header import Envelope, Job
from fedsrd.federation.remote.log import Log
from fedsrd.federation.remote.replica import Replica
from fedsrd.federation.remote.rules import BrokenRuleError, broken
from fedsrd.federation.remote.site import Site, site_of
from fedsrd.federation.remote.unmasked import origin
from fedsrd.federation.setup import digest_of, method_of
from fedsrd.federation.sums import Terms
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import Method
from fedsrd.places import without_folders
from fedsrd.privacy.packed import Words
from fedsrd.text import foreign

Order = TypeVar("Order", header.Train, header.Evaluate, header.Finalize)
Handler = Callable[[Envelope, Mapping[str, Any], "ClientRuntime", Gate], Answer]


class ClientRuntime(Protocol):
    """How a client gets at its model and its data.

    Attributes:
        strict: whether the site's settings hold nothing but our own keys.
        knows_model: whether `table` comes from the client's own model, and not from the server.
    """

    @property
    def strict(self) -> bool: ...

    @property
    def knows_model(self) -> bool: ...

    def table(self, job: Job) -> TensorTable:
        """The model's trained tensors."""

    def trainer(self, job: Job, site: Site) -> Trainer:
        """Local training; called only where there is something to train."""

    def evaluate(self, client: Client, job: Job, round_number: int) -> Metrics:
        """Metrics of the model that the client holds, on its own data."""

    def finish(self, client: Client, job: Job, site: Site, replica: Replica) -> None:
        """After the last round."""


def respond(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, node: int) -> Reply:
    """The reply to one of the server's messages.

    Args:
        message: what came.
        settings: the site's own (`site.site_of`).
        runtime: how the client gets at model and data.
        node: the carrier's number of this client.

    Raises:
        PayloadError: the message is not one of ours, or damaged.
        FedSRDError: the site's rules forbid it, or its settings, data or disk are wrong; the server is told, without
            the folders of paths, and goes on without this client.
    """
    gate = Gate(settings, header.about(message))
    try:
        gate.open()
        return gate.reply(_answered(message, settings, runtime, node, gate))
    except Exception as error:
        if gate.simulated and not isinstance(error, FedSRDError | OSError):
            raise  # a bug of one's own code, on one's own machine
        raise gate.refusal(error) from error


def _answered(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, node: int, gate: Gate) -> Answer:
    handlers: dict[str, Handler] = {
        "hello": partial(_hello, node),
        "train": _train,
        "secure": _secure,
        "evaluate": _evaluate,
        "finalize": _finalize,
    }
    kind = header.kind_of(message)
    if kind not in handlers:
        raise PayloadError(f"a message of kind {kind!r}: expected one of {', '.join(handlers)}")
    if (module := settings.get("import")) is not None:
        plugins.load(str(module))
    return handlers[kind](message, settings, runtime, gate)


def _hello(node: int, message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate) -> Answer:
    hello, _ = header.unpack(message, header.Hello)
    gate.rules.check_run(hello.federation)
    site = site_of(settings, hello.names, strict=runtime.strict)
    state = Replica(site.state, hello.federation, site.name).state()
    held, digest = state.version, "" if state.version < 0 else state.digest
    if site.key is None:
        return Answer(header.HelloReply(name=site.name, held=held, digest=digest))
    if hello.node != node:
        # Whoever could have this signed for another node would have the name there.
        raise PayloadError(f"a greeting for node {hello.node}: this is {node}, and signs for itself alone")
    key = identity.load(site.key)
    signature = key.sign(identity.statement(hello.federation, hello.nonce, node, site.name, held, digest))
    return Answer(header.HelloReply(name=site.name, held=held, digest=digest, key=key.public, signature=signature))


def _secure(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate) -> Answer:
    asked, body = header.unpack(message, header.Secure)
    gate.rules.check_run(asked.federation)
    site = site_of(settings, asked=asked.name, strict=runtime.strict)
    replica = Replica(site.state, asked.federation, site.name)
    with replica.locked():
        said, answer = masking.answered(asked, body, site, replica)
    Log(replica.folder / "log.jsonl").write("secure", round=asked.round, phase=asked.phase, failure=said.failure)
    return Answer(said, answer)


def _train(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate) -> Answer:
    order, payload, site, replica = _opened(message, settings, runtime, gate, header.Train)
    log = Log(replica.folder / "log.jsonl")
    refused = None
    with replica.locked():
        try:
            if not order.inbox or order.job.sum is None:
                gate.rules.check_plain()
            answer, held = _trained(order, payload, site, runtime, replica, gate, log)
        except BrokenRuleError as error:
            # Nothing was kept: what lies on the disk is what it was.
            answer, refused = Failure(site.name, order.round, str(error)), gate.asked
            held = -1 if order.reset else replica.state().version
    if isinstance(answer, Failure):
        log.write("failure", round=order.round, reason=answer.reason, **({"asked": refused} if refused else {}))
        # The server is told what is wrong, not how this site's disk looks.
        told = without_folders(answer.reason, [section.source for section in site.data])
        failed = header.TrainReply(name=site.name, round=order.round, held=held, failure=told, lost=answer.lost)
        return Answer(failed, refused=refused)
    claims = {"loss": answer.loss, "seconds": answer.seconds, "epsilon": answer.epsilon, "delta": answer.delta}
    log.write("update", round=order.round, bytes=len(answer.payload), **claims)
    said = header.TrainReply(
        name=site.name,
        round=order.round,
        held=held,
        examples=answer.examples,
        loss=answer.loss,
        seconds=Phases.model_validate(answer.seconds),
        epsilon=answer.epsilon,
        delta=answer.delta,
        masked=order.inbox > 0,
    )
    return Answer(said, answer.payload, answer.metrics)


def _trained(
    order: header.Train,
    payload: bytes,
    site: Site,
    runtime: ClientRuntime,
    replica: Replica,
    gate: Gate,
    log: Log,
) -> tuple[Update | Failure, int]:
    """What comes of a task, and the version that is held then. Raises BrokenRuleError with nothing kept."""
    client, damage = _client(order, site, runtime, replica, gate)
    if order.inbox > len(payload):
        raise PayloadError(f"an inbox of {order.inbox} bytes in {len(payload)}")
    sync = header.sync_of_header(order.sync, payload[order.inbox :])
    log.write("task", round=order.round, held=client.version, bytes=len(payload))
    if damage is not None:
        return Failure(site.name, order.round, damage, lost=True), client.version
    if order.version < client.version:
        # An old message: what is held is newer, and stays.
        reason = f"a task of version {order.version} came late: version {client.version} is held"
        return Failure(site.name, order.round, reason), client.version
    terms = None if order.sum is None else Terms(order.sum.clients, tuple(order.sum.steps))
    task = TrainTask(order.round, order.version, order.digest, sync, terms, payload[: order.inbox])
    answer = client.answer(task, lambda *_: None)
    if isinstance(answer, Update):
        gate.rules.check_size(len(answer.payload))
    replica.save(client)
    return answer, client.version


def _evaluate(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate) -> Answer:
    order, payload, site, replica = _opened(message, settings, runtime, gate, header.Evaluate)
    if not gate.rules.tell.metrics:
        raise broken("tell.metrics", "what the site's own evaluation finds is not told")
    with replica.locked():
        client, said = _follow(order, payload, site, replica, runtime, gate)
    metrics = {} if said.failure is not None else runtime.evaluate(client, order.job, order.round)
    return Answer(said, metrics=metrics)


def _finalize(message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate) -> Answer:
    order, payload, site, replica = _opened(message, settings, runtime, gate, header.Finalize)
    with replica.locked():
        client, said = _follow(order, payload, site, replica, runtime, gate)
        if said.failure is None:
            masking.secure_client(site, replica).close()
            runtime.finish(client, order.job, site, replica)
    return Answer(said)


def _opened(
    message: Envelope, settings: Mapping[str, Any], runtime: ClientRuntime, gate: Gate, kind: type[Order]
) -> tuple[Order, bytes, Site, Replica]:
    """An order, its payloads, and whom it is for. Raises PayloadError where that is somebody else."""
    order, payload = header.unpack(message, kind)
    gate.asked = asked(order.job)
    site = replace(
        site_of(settings, asked=order.name, strict=runtime.strict), privacy=gate.site.privacy, run=order.federation
    )
    return order, payload, site, Replica(site.state, order.federation, site.name)


def _follow(
    order: header.Evaluate | header.Finalize,
    payload: bytes,
    site: Site,
    replica: Replica,
    runtime: ClientRuntime,
    gate: Gate,
) -> tuple[Client, header.SyncReply]:
    """Brings the replica to the newest version, on the disk too; gives what it holds now."""
    client, damage = _client(order, site, runtime, replica, gate)
    # After the last round, nothing is lost with what the method kept.
    failure = damage if isinstance(order, header.Evaluate) else None
    try:
        client.sync(header.sync_of_header(order.sync, payload))
    except (PayloadError, FederationError) as error:
        failure = failure or str(error)
        client.restore(NOTHING)
    replica.save(client)
    digest = client.digest if client.version >= 0 else ""
    Log(replica.folder / "log.jsonl").write(order.kind, held=client.version, digest=digest, failure=failure)
    if failure is None and client.version < 0:
        failure = "nothing is held, and the message brings no start"
    return client, header.SyncReply(name=site.name, held=client.version, digest=digest, failure=failure)


def _client(
    order: header.Order, site: Site, runtime: ClientRuntime, replica: Replica, gate: Gate
) -> tuple[Client, str | None]:
    """The client with what it has kept; without its replica, where the server says that this is not of the run. And
    what is damaged of it, for the server to be told. Raises BrokenRuleError where the site's rules forbid the job.
    """
    job = order.job
    gate.admit(order, knows_model=runtime.knows_model)
    method, table = _method(job), runtime.table(job)
    gate.rules.check_table(table)
    charge = gate.charge(order, knows_model=runtime.knows_model)
    trainer = _OnDemand(lambda: runtime.trainer(job, site), charge)
    noise = None if job.noise is None else (job.noise, job.shares)
    training = digest_of(job.recipe or {})
    config = FederationConfig(
        method, table, job.seed, job.uplink, clip=job.clip, sum=job.sum, noise=noise, training=training
    )

    def mask(task: TrainTask, about: str, words: Words) -> None:
        follows = origin(job.recipe or {}, job.seed, task.version, task.digest)
        masking.secure_client(site, replica).mask(task, about, words, follows)

    client = GuardedClient(
        site.name,
        config,
        trainer,
        job.rank,
        knows_model=runtime.knows_model,
        masking=mask,
        secret=lambda number: masking.noise_secret(site, order.federation, number),
    )
    damage = replica.load(client)
    if order.reset:
        client.restore(NOTHING)
    return client, damage


def _method(job: Job) -> Method:
    try:
        return method_of(job.method)
    except RecipeError as error:
        raise PayloadError(f"the server's [method] table cannot be read: {foreign(error)}") from None


class _OnDemand:
    """A trainer that is made when it is first asked: a message that trains nothing loads no model.

    Args:
        make: loads it.
        charge: is given its number of examples before each training, which it may forbid.
    """

    def __init__(self, make: Callable[[], Trainer], charge: Callable[[int], None]) -> None:
        self._make = make
        self._charge = charge
        self._made: Trainer | None = None

    @property
    def _trainer(self) -> Trainer:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def count(self) -> int:
        return self._trainer.count

    def train(self, plan: LocalPlan, round_number: int, on_step: Callable[[int, float], None]) -> Trained:
        trainer = self._trainer
        self._charge(trainer.count)
        return trainer.train(plan, round_number, on_step)

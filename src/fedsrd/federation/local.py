"""A whole federation in one process: the server and its clients, one after the other, with one model lent to each in
turn.

Everything between them is the bytes and messages of a real deployment; only the transport is a function call.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fedsrd.core.tensors import GlobalState, Tensors
from fedsrd.errors import DataError, FederationError, SecureAggregationError
from fedsrd.federation import transition
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import Client, ClientMemory
from fedsrd.federation.driver import Driver
from fedsrd.federation.messages import Broadcast, Failure, Held, Sync, TrainTask, Update
from fedsrd.federation.resume import restore
from fedsrd.federation.secure_client import InMemory, SecureClient
from fedsrd.federation.secure_messages import Phase
from fedsrd.federation.session import Assets, Observer, Privacy, Session
from fedsrd.federation.setup import Prepared, config_of, server_of
from fedsrd.federation.starting import rounds_of
from fedsrd.federation.sum_codec import Secret
from fedsrd.federation.transition import FederationConfig
from fedsrd.privacy.stream import public
from fedsrd.runs.records import RoundRecord, Summary

RUN = "run"
"""What the sessions of secure aggregation call a run whose clients live here."""
POOL = "all"
"""What the one client is called where all data lies in one place."""


class Shared:
    """`transition.advance` for replicas in one process: who holds the state that was last advanced, and is sent the
    same broadcast, gets the state that came of it, not another one like it.

    All clients hold one state, so each but the first would decode, add and hash only to find what is there already, and
    keep a copy of it. They may have one object, because nobody writes to a state. The first client still makes it from
    the bytes, on its own, and all compare its digest with the server's. Only the last one is kept: who is further
    behind makes its own.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[FederationConfig, int, str, bytes, int], GlobalState] | None = None

    def advance(self, config: FederationConfig, state: GlobalState, payload: bytes, clients: int) -> GlobalState:
        """As `transition.advance`."""
        # A state's digest says nothing of its version.
        asked = (config, state.version, state.digest, payload, clients)
        if self._last is None or self._last[0] != asked:
            self._last = (asked, transition.advance(config, state, payload, clients))
        return self._last[1]


class LocalEngine:
    """Clients that are called, one after the other. A replica that cannot follow is a bug here, and raises."""

    def __init__(
        self, clients: Sequence[Client], session: Session, secure: Mapping[str, SecureClient] | None = None
    ) -> None:
        self.clients = {client.name: client for client in clients}
        self._secure = dict(secure or {})
        self._session = session
        self._told = False

    def names(self, *, wait: bool = True) -> list[str]:
        """All clients, always."""
        return list(self.clients)

    def ask(self, tasks: Mapping[str, TrainTask]) -> Iterator[Update | Failure]:
        """Has each client train, as many at once as the recipe says."""
        at_once = self._session.recipe.training.clients_at_once
        names = list(tasks)
        for place in range(0, len(names), at_once):
            group = {name: tasks[name] for name in names[place : place + at_once]}
            if len(group) > 1:
                yield from self._together(group)
            else:
                for name, task in group.items():
                    yield self.clients[name].train(task, self._session.on_step(task.round, name))

    def _together(self, tasks: Mapping[str, TrainTask]) -> Iterator[Update | Failure]:
        """The same in one pass, or one after the other where that cannot be. Each is told its part of the pass's time,
        so that the clients' times still add up to what the round took.
        """
        from fedsrd.training import lanes

        clients = [self.clients[name] for name in tasks]
        jobs = [client.prepare(tasks[client.name]) for client in clients]
        shows = [self._session.on_step(job.round, client.name) for job, client in zip(jobs, clients, strict=True)]
        trainers: list[Any] = [client.trainer for client in clients]
        plans = [job.plan for job in jobs]
        if not lanes.can_train_together(trainers, plans):
            if not self._told:
                self._told = True
                self._session.observer.warn(
                    "training.clients_at_once: these clients train one after the other; together they can where the "
                    "method trains the same tensors at all of them, without dropout and packing"
                )
            for client, job, show in zip(clients, jobs, shows, strict=True):
                yield client.run(job, show)
            return
        began = time.perf_counter()
        found = lanes.train_together(trainers, plans, jobs[0].round, shows)
        seconds = (time.perf_counter() - began) / len(clients)
        for client, job, trained in zip(clients, jobs, found, strict=True):
            yield client.finish(job, trained, seconds)

    def question(
        self, round_number: int, phase: Phase, bodies: Mapping[str, bytes]
    ) -> Iterator[tuple[str, bytes] | Failure]:
        """Has each client answer a phase of secure aggregation."""
        for name, body in bodies.items():
            try:
                yield name, self._secure[name].answer(RUN, round_number, phase, body)
            except SecureAggregationError as error:
                yield Failure(name, round_number, str(error))

    def reports(self) -> list[Held]:
        """Nothing: what these clients hold follows from what they were sent."""
        return []

    def deliver(self, broadcast: Broadcast, counted: Mapping[str, bool]) -> dict[str, str]:
        """Has each client apply the broadcast."""
        return {name: self.clients[name].apply(broadcast, counted=went_in) for name, went_in in counted.items()}

    def finalize(self, messages: Mapping[str, Sync]) -> dict[str, str]:
        """Brings each client forward."""
        for name, sync in messages.items():
            self.clients[name].sync(sync)
        return {name: self.clients[name].digest for name in messages}


def run(
    prepared: Prepared, observer: Observer, *, keep_payloads: bool = False, assets: Assets | None = None
) -> Summary:
    """Runs (or continues) a federation to its last round and returns the summary.

    The state of every complete round is on the disk; a run that was killed continues with the same bytes.

    Args:
        prepared: what `setup.prepare` checked.
        observer: who is told how it goes.
        keep_payloads: write every uplink and downlink into the run's folder.
        assets: models and data of earlier runs in this process, to be used again.

    Raises:
        FederationError: no client sent a usable update, replicas differ, or the disk is full.
        RunFolderError: another process is at work in the folder, or has been since it was checked; or what is to be
            continued is damaged.
        DataError, ModelError, PackageError: data or model cannot be loaded.
    """
    for entry in prepared.recipe.clients:
        if entry.data is None:
            raise DataError(f"client {entry.name}: has no data in the recipe; a run in one process needs everybody's")
    with prepared.folder.locked():
        prepared.folder.check(prepared.recipe, resume=prepared.resume)
        # A damaged state must show before weights are read.
        restored = restore(prepared.folder, observer.warn)
        privacy = Privacy.of_run(prepared.recipe, prepared.folder.path)
        session = Session(prepared.recipe, prepared.lora, observer, assets or Assets(), privacy)
        return _run(prepared, session, restored, keep_payloads)


def _noise_secret(seed: int, name: str, number: int) -> Secret:
    """Of a client's noise: nobody is hidden from here, so that a run repeats itself."""
    return public(seed), "clients", RUN, name, number


def _run(
    prepared: Prepared,
    session: Session,
    restored: tuple[Checkpoint, list[RoundRecord]] | None,
    keep_payloads: bool,
) -> Summary:
    recipe, folder = prepared.recipe, prepared.folder
    config = config_of(recipe, prepared.table)
    method = config.method
    ranks = {entry.name: entry.rank for entry in recipe.clients}
    server = server_of(recipe, config)
    shared = Shared()
    trainers = session.trainers(POOL if method.pooled else None)
    # They live and die with the server here, so that there is nothing to sign and nothing to keep.
    secure = {name: SecureClient(name, InMemory()) for name in trainers} if recipe.privacy.secure_aggregation else {}
    clients = [
        Client(
            name,
            config,
            trainer,
            ranks.get(name),
            shared.advance,
            secure[name].mask if secure else None,
            partial(_noise_secret, recipe.seed, name),
        )
        for name, trainer in trainers.items()
    ]
    names = [client.name for client in clients]

    def quality() -> dict[str, Any]:
        if not method.personal or server.version == 0 or not session.evaluates(server.version):
            return session.record(server.version, server.model(), server.state.base_delta)
        by_client = {client.name: measured(client.model(server.state)) for client in clients}
        sets = next(iter(by_client.values()))
        mean = {name: sum(found[name] for found in by_client.values()) / len(by_client) for name in sets}
        return {"eval": mean, "eval_by_client": by_client}

    def measured(tensors: Tensors) -> dict[str, float]:
        found = session.quality(server.version, tensors, server.state.base_delta)
        return {name: one.mean for name, one in found.items()}

    rounds = rounds_of(recipe, server, LocalEngine(clients, session, secure), session.observer.warn, federation=RUN)
    driver = Driver(
        recipe,
        folder,
        prepared.table,
        prepared.lora,
        rounds,
        session.observer,
        quality,
        lambda: {client.name: client.memory.kept for client in clients if client.memory.kept},
    )
    if restored is None:
        start = server.start()
        for client in clients:
            client.start(start)
        rounds.at_newest(names)
        records = driver.begin(names, len(start.payload))
    else:
        checkpoint, records = restored
        for client in clients:
            memory = checkpoint.clients.get(client.name, {})
            client.restore(checkpoint.state, ClientMemory(memory, checkpoint.counted.get(client.name, 0)))
        driver.restore(checkpoint, records)
        # They have the newest state now, however far behind they were: the bytes of those that the ledger knows as
        # behind are counted when they are asked, or at the end.
        rounds.at_newest(name for name in names if name not in checkpoint.known)
    driver.run(records, keep_payloads=keep_payloads)
    digests = {client.digest for client in clients}
    if digests != {server.digest}:
        raise FederationError(f"replicas differ: {sorted(digests)}")
    if method.personal:
        from fedsrd.training.models import adapter_tensors

        for client in clients:
            tensors = adapter_tensors(client.model(server.state))
            folder.write_adapter(driver.adapter_config(), tensors, name=client.name)
    return driver.summarise(records)

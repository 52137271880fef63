"""A whole federation in one process: the server and its clients, one after the other, with one model lent to each in
turn.

Everything between them is the bytes and messages of a real deployment; only the transport is a function call.
"""

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedsrd import methods
from fedsrd.core.factors import Factors, ShapeTable
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.client import Client
from fedsrd.federation.messages import Failure
from fedsrd.federation.records import Record, round_record, start_record, summarise
from fedsrd.federation.runfolder import Checkpoint, RunFolder
from fedsrd.federation.sampling import sample
from fedsrd.federation.server import Closed, Server
from fedsrd.federation.session import Assets, Observer, Session, check_data
from fedsrd.recipe import Recipe

POOL = "all"
"""What the one client is called where all data lies in one place."""


@dataclass(frozen=True)
class Prepared:
    """All that was checked before anything expensive started."""

    recipe: Recipe
    folder: RunFolder
    table: ShapeTable
    lora: Any


def prepare(
    recipe: Recipe, folder: RunFolder, *, resume: bool, observer: Observer, assets: Assets | None = None
) -> Prepared:
    """Checks everything that can be checked before weights are loaded: folder, data, model and rank.

    Raises:
        RunFolderError, DataError, ModelError, RecipeError: what is wrong and what to do. Nothing was written.
    """
    if resume:
        folder.check_resumable(recipe)
    else:
        folder.check_new()
    table, lora = check(recipe, observer, assets or Assets())
    return Prepared(recipe, folder, table, lora)


def check(recipe: Recipe, observer: Observer, assets: Assets) -> tuple[ShapeTable, Any]:
    """What `prepare` checks without a folder: data, ranks, device and model. Gives the shapes and PEFT's config.

    Raises:
        DataError, ModelError, RecipeError: what is wrong and what to do.
    """
    from fedsrd.training import models

    sections = [(data, entry.name) for entry in recipe.clients for data in (entry.data, *entry.also)]
    sections += [(entry.data, entry.name) for entry in recipe.evaluation.sets]
    for data, owner in sections:
        assets.get(partial(check_data, data, owner), "checked", data)
    _check_ranks(recipe)
    models.pick_device(recipe.model.device)
    lora = models.lora_config(recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets)
    table = assets.get(
        partial(models.shape_table, recipe.model.id, lora, recipe.model.revision, observer.say),
        "table",
        recipe.model,
        recipe.lora,
    )
    return table, lora


def run(prepared: Prepared, observer: Observer, *, keep_payloads: bool = False, assets: Assets | None = None) -> Record:
    """Runs (or continues) a federation to its last round and returns the summary.

    The state of every complete round is on the disk; a run that was killed continues with the same bytes.

    Args:
        prepared: what `prepare` checked.
        observer: who is told how it goes.
        keep_payloads: write every uplink and downlink into the run's folder.
        assets: models and data of earlier runs in this process, to be used again.

    Raises:
        FederationError: no client sent a usable update, replicas differ, the disk is full, or another process is at
            work in the folder.
        DataError, ModelError, PackageError: data or model cannot be loaded.
    """
    with prepared.folder.locked():
        return _run(prepared, Session(prepared.recipe, prepared.lora, observer, assets or Assets()), keep_payloads)


def _run(prepared: Prepared, session: Session, keep_payloads: bool) -> Record:
    recipe, folder, table = prepared.recipe, prepared.folder, prepared.table
    method = methods.get(recipe.method["name"])(_options(recipe))
    ranks = {entry.name: entry.rank for entry in recipe.clients}
    asked = recipe.participation
    server = Server(
        table,
        method,
        recipe.weighting,
        recipe.seed,
        recipe.wire.downlink,
        ranks,
        minimum=1 if method.pooled else asked.minimum,
        norm_bound=asked.norm_bound or None,
    )
    clients = [
        Client(name, table, method, trainer, recipe.seed, recipe.wire.uplink, ranks.get(name))
        for name, trainer in session.trainers(POOL if method.pooled else None).items()
    ]
    federation = _Federation(server, clients, method, session)
    names = [client.name for client in clients]
    restored = folder.restore()
    if restored is None:
        folder.create(recipe, environment())
        if not method.personal and not method.changes_base:
            folder.write_adapter_config(session.adapter_config())
        start = server.start()
        for client in clients:
            client.start(start)
            server.delivered(client.name)
        records = [start_record(len(start.payload), names, start.digest, federation.quality())]
        folder.commit(federation.checkpoint(), records, federation.adapter())
    else:
        checkpoint, records = restored
        version = checkpoint.version
        server.restore(checkpoint.factors, version, checkpoint.base, checkpoint.server)
        server.ledger.restore(checkpoint.missed, checkpoint.known or dict.fromkeys(names, version))
        for client in clients:
            client.restore(checkpoint.factors, version, checkpoint.base, checkpoint.clients.get(client.name))
        # A crash may have left the adapter one round behind the state.
        folder.commit(checkpoint, records, federation.adapter())
        session.observer.say(f"Continuing after round {version} of {recipe.rounds}")
        _warn_of_other_versions(folder.stored_recipe().environment, session.observer)
    for record in records:
        session.observer.round_done(record)
    while server.version < recipe.rounds:
        record, closed = _one_round(federation, table)
        records.append(record)
        if keep_payloads:
            uplinks = {update.client: update.payload for update in closed.accepted}
            folder.keep_payloads(server.version, uplinks, closed.broadcast.payload)
        folder.commit(federation.checkpoint(), records, federation.adapter())
        session.observer.round_done(records[-1])
    if federation.settle(records):
        folder.commit(federation.checkpoint(), records, federation.adapter())
    federation.export(folder)
    summary = summarise(recipe, table, records)
    folder.write_summary(summary)
    return summary


@dataclass(frozen=True)
class _Federation:
    """Server and clients, and the model that they share."""

    server: Server
    clients: Sequence[Client]
    method: methods.Method
    session: Session

    def checkpoint(self) -> Checkpoint:
        """All that a run continues from."""
        memories = {client.name: client.memory for client in self.clients if client.memory}
        server = self.server
        ledger = server.ledger
        behind = ledger.known if set(ledger.known.values()) != {server.version} else {}
        return Checkpoint(
            server.factors, server.version, server.base, server.memory, memories, ledger.contents(), behind
        )

    def participants(self) -> list[Client]:
        """Who takes part in the next round."""
        asked, recipe = self.session.recipe.participation, self.session.recipe
        by_name = {client.name: client for client in self.clients}
        chosen = sample(list(by_name), asked.fraction, asked.minimum, recipe.seed, self.server.version + 1)
        return [by_name[name] for name in chosen]

    def settle(self, records: list[Record]) -> bool:
        """After the last round: brings every client that sat it out to the newest version, and compares all replicas.

        Their bytes are added to the last round's. Gives whether there was anything to do.
        """
        sent = 0
        for client in self.clients:
            sync = self.server.sync(client.name)
            client.sync(sync)
            self.server.delivered(client.name)
            sent += sync.size
            if sync.size:
                down = records[-1]["bytes_down"]
                down[client.name] = down.get(client.name, 0) + sync.size
        digests = {client.digest for client in self.clients}
        if digests != {self.server.digest}:
            raise FederationError(f"replicas differ: {sorted(digests)}")
        return sent > 0

    def adapter(self) -> Factors | None:
        """The factors of the one adapter, None where there is none that says all."""
        return None if self.method.personal or self.method.changes_base else self.server.model()

    def quality(self) -> dict[str, Any]:
        """What the record of the round says of quality: that of the global model, or of every client's own."""
        server = self.server
        if not self.session.evaluates(server.version):
            return {"eval": {}}
        if not self.method.personal or server.version == 0:
            return {"eval": self.session.quality(server.version, server.model(), server.base)}
        by_client = {
            client.name: self.session.quality(server.version, client.model(server.factors), server.base)
            for client in self.clients
        }
        sets = next(iter(by_client.values()))
        mean = {name: sum(found[name] for found in by_client.values()) / len(by_client) for name in sets}
        return {"eval": mean, "eval_by_client": by_client}

    def export(self, folder: RunFolder) -> None:
        """Writes the adapters that `commit` does not: personal ones, and one that holds a changed base."""
        from fedsrd.training.models import adapter_tensors, merged_tensors

        if self.method.personal:
            for client in self.clients:
                folder.write_adapter(
                    self.session.adapter_config(), adapter_tensors(client.model(self.server.factors)), name=client.name
                )
        elif self.method.changes_base:
            tensors, ranks = merged_tensors(self.server.model(), self.server.base)
            folder.write_adapter(self.session.adapter_config(ranks), tensors)


def environment() -> dict[str, str]:
    """Versions of what computes: Python, torch and the libraries that training goes through."""
    packages = ("fedsrd", "torch", "numpy", "transformers", "peft", "datasets", "safetensors")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _warn_of_other_versions(stored: Mapping[str, str], observer: Observer) -> None:
    now = environment()
    changed = [f"{name} {was} -> {now[name]}" for name, was in stored.items() if now.get(name, was) != was]
    if changed:
        observer.warn(
            f"the run began with other versions ({', '.join(changed)}): its bytes may differ from one that did not stop"
        )


def _one_round(federation: _Federation, table: ShapeTable) -> tuple[Record, Closed]:
    server, clients, session = federation.server, federation.participants(), federation.session
    round_number = server.version + 1
    answers = []
    seconds = {"train": 0.0, "sparsify": 0.0, "encode": 0.0}
    down = {}
    for client in clients:
        task = server.task(client.name)
        down[client.name] = task.sync.size
        answer = client.train(task, session.on_step(round_number, client.name))
        if not isinstance(answer, Failure):
            for phase, value in answer.seconds.items():
                seconds[phase] += value
        answers.append(answer)
    closed = server.close_round(answers)
    for failure in closed.rejected:
        session.observer.warn(f"round {round_number}: {failure.client} is left out: {failure.reason}")
    began = time.perf_counter()
    digests = {client.apply(closed.broadcast) for client in clients}
    if digests != {server.digest}:
        raise FederationError(f"round {round_number}: replicas differ: {sorted(digests)}")
    for client in clients:
        server.delivered(client.name)
        down[client.name] += len(closed.broadcast.payload)
    seconds |= closed.seconds | {"apply": time.perf_counter() - began}
    began = time.perf_counter()
    quality = federation.quality()
    seconds["evaluate"] = time.perf_counter() - began
    return round_record(closed, down, table, seconds, quality), closed


def _check_ranks(recipe: Recipe) -> None:
    method = methods.get(recipe.method["name"])
    for entry in recipe.clients:
        if entry.rank is None or entry.rank == recipe.lora.rank:
            continue
        if entry.rank > recipe.lora.rank:
            raise RecipeError(
                f"client {entry.name}: rank = {entry.rank} is more than the adapter's, lora.rank = {recipe.lora.rank}"
            )
        if not method.any_rank:
            able = [name for name in methods.names() if methods.get(name).any_rank]
            raise RecipeError(
                f"client {entry.name}: rank = {entry.rank}, but {method.name} needs every client at lora.rank = "
                f"{recipe.lora.rank}; methods that take lower ranks: {', '.join(able)}"
            )


def _options(recipe: Recipe) -> methods.MethodOptions:
    kind = methods.get(recipe.method["name"]).Options
    return kind.model_validate({key: value for key, value in recipe.method.items() if key != "name"})

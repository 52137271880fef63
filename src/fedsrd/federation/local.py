"""A whole federation in one process: the server and its clients, one after the other, with one model lent to each in
turn.

Everything between them is the bytes and messages of a real deployment; only the transport is a function call.
"""

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedsrd import methods
from fedsrd.core.factors import ShapeTable, digest
from fedsrd.data.examples import Example
from fedsrd.data.prompt import Encoded, encode
from fedsrd.errors import DataError, FederationError
from fedsrd.federation.client import Client
from fedsrd.federation.messages import Failure
from fedsrd.federation.records import Record, round_record, start_record, summarise
from fedsrd.federation.runfolder import RunFolder
from fedsrd.federation.server import Closed, Server
from fedsrd.recipe import DataSection, Recipe

EMBEDDED = "embedded:"


class Observer(Protocol):
    """Who is told how a run goes; a terminal display, a tracker, or nobody."""

    def say(self, text: str) -> None:
        """Something happens that takes a while, or that the user should know."""

    def warn(self, text: str) -> None:
        """Something went wrong that does not end the run."""

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Within a round: `what` (a client, or evaluation) stands at `done` of `total`."""

    def round_done(self, record: Record) -> None:
        """A round is complete and on the disk."""


@dataclass(frozen=True)
class Prepared:
    """All that was checked before anything expensive started."""

    recipe: Recipe
    folder: RunFolder
    table: ShapeTable
    lora: Any


def prepare(recipe: Recipe, folder: RunFolder, *, resume: bool, observer: Observer) -> Prepared:
    """Checks everything that can be checked before weights are loaded: folder, data, model and rank.

    Raises:
        RunFolderError, DataError, ModelError, RecipeError: what is wrong and what to do. Nothing was written.
    """
    from fedsrd.training import models

    if resume:
        folder.check_resumable(recipe)
    else:
        folder.check_new()
    sections = [(entry.data, entry.name) for entry in recipe.clients]
    sections += [(entry.data, entry.name) for entry in recipe.evaluation.sets]
    for data, owner in sections:
        _check_data(data, owner)
    models.pick_device(recipe.model.device)
    lora = models.lora_config(recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets)
    table = models.shape_table(recipe.model.id, lora, recipe.model.revision, observer.say)
    return Prepared(recipe, folder, table, lora)


def run(prepared: Prepared, observer: Observer, *, keep_payloads: bool = False) -> Record:
    """Runs (or continues) a federation to its last round and returns the summary.

    The state of every complete round is on the disk; a run that was killed continues with the same bytes.

    Args:
        prepared: what `prepare` checked.
        observer: who is told how it goes.
        keep_payloads: write every uplink and downlink into the run's folder.

    Raises:
        FederationError: no client sent a usable update, replicas differ, or the disk is full.
        DataError, ModelError, PackageError: data or model cannot be loaded.
    """
    recipe, folder, table = prepared.recipe, prepared.folder, prepared.table
    session = _Session(prepared, observer)
    method = methods.get(recipe.method["name"])(_options(recipe))
    server = Server(table, method, recipe.weighting, recipe.seed, recipe.wire.downlink)
    clients = [
        Client(entry.name, table, method, trainer, recipe.seed, recipe.wire.uplink)
        for entry, trainer in zip(recipe.clients, session.trainers(), strict=True)
    ]
    names = [client.name for client in clients]
    restored = folder.restore()
    if restored is None:
        folder.create(recipe, environment())
        folder.write_adapter_config(session.adapter_config())
        start = server.start()
        for client in clients:
            client.start(start)
        records = [start_record(len(start.payload), names, start.digest, session.quality(0, server))]
        folder.commit(server.factors, 0, records)
    else:
        factors, version, records = restored
        server.restore(factors, version)
        for client in clients:
            client.restore(factors, version)
        # A crash may have left the adapter one round behind the state.
        folder.commit(factors, version, records)
        observer.say(f"Continuing after round {version} of {recipe.rounds}")
        _warn_of_other_versions(folder.stored_recipe().environment, observer)
    for record in records:
        observer.round_done(record)
    while server.version < recipe.rounds:
        record, closed = _one_round(server, clients, session, table)
        records.append(record)
        if keep_payloads:
            uplinks = {update.client: update.payload for update in closed.accepted}
            folder.keep_payloads(server.version, uplinks, closed.broadcast.payload)
        folder.commit(server.factors, server.version, records)
        observer.round_done(records[-1])
    summary = summarise(recipe, table, records)
    folder.write_summary(summary)
    return summary


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


def _one_round(
    server: Server, clients: Sequence[Client], session: "_Session", table: ShapeTable
) -> tuple[Record, Closed]:
    task = server.task()
    answers = []
    seconds = {"train": 0.0, "sparsify": 0.0, "encode": 0.0}
    for client in clients:
        answer = client.train(task, session.on_step(task.round, client.name))
        if not isinstance(answer, Failure):
            for phase, value in answer.seconds.items():
                seconds[phase] += value
        answers.append(answer)
    closed = server.close_round(answers)
    for failure in closed.rejected:
        session.observer.warn(f"round {task.round}: {failure.client} is left out: {failure.reason}")
    began = time.perf_counter()
    digests = {client.apply(closed.broadcast) for client in clients}
    if digests != {digest(server.factors)}:
        raise FederationError(f"round {task.round}: replicas differ: {sorted(digests)}")
    seconds |= closed.seconds | {"apply": time.perf_counter() - began}
    began = time.perf_counter()
    quality = session.quality(task.round, server)
    seconds["evaluate"] = time.perf_counter() - began
    return round_record(closed, [client.name for client in clients], table, seconds, quality), closed


class _Session:
    """The model and the data of a local run, and who watches it."""

    def __init__(self, prepared: Prepared, observer: Observer) -> None:
        from fedsrd.training.models import AdaptedModel

        recipe = prepared.recipe
        self.prepared = prepared
        self.observer = observer
        # Data first: a client without examples must show before weights are read.
        train = {entry.name: load_examples(entry.data, entry.name, observer) for entry in recipe.clients}
        tests = {
            entry.name: load_examples(entry.data, entry.name, observer)[: recipe.evaluation.examples]
            for entry in recipe.evaluation.sets
        }
        observer.say(f"Loading {recipe.model.id}")
        self.adapted = AdaptedModel.load(
            recipe.model.id,
            prepared.lora,
            revision=recipe.model.revision,
            dtype=recipe.model.dtype,
            device=recipe.model.device,
            gradient_checkpointing=recipe.model.gradient_checkpointing,
            say=observer.say,
        )
        self._train = {name: self._encoded(examples) for name, examples in train.items()}
        self._tests = {name: self._encoded(examples) for name, examples in tests.items()}

    def trainers(self) -> list[Any]:
        """One trainer a client, in the recipe's order, all with the same model."""
        from fedsrd.training.sft import LocalTrainer, SFTOptions

        recipe, training = self.prepared.recipe, self.prepared.recipe.training
        options = SFTOptions(
            training.steps,
            training.batch_size,
            training.accumulation,
            training.learning_rate,
            training.weight_decay,
            training.max_grad_norm,
        )
        return [
            LocalTrainer(self.adapted, examples, options, name, recipe.seed) for name, examples in self._train.items()
        ]

    def quality(self, round_number: int, server: Server) -> dict[str, float]:
        """Response NLL of the global adapter by set, where this round is one to evaluate; else nothing."""
        from fedsrd.evaluation.nll import evaluate

        recipe = self.prepared.recipe
        every = recipe.evaluation.every
        if round_number not in (0, recipe.rounds) and not (every and round_number % every == 0):
            return {}
        self.adapted.set_factors(server.factors)
        done = iter(range(len(self._tests)))

        def on_set(name: str) -> None:
            self.observer.activity(round_number, "evaluation", next(done), len(self._tests), name)

        return evaluate(self.adapted, self._tests, recipe.evaluation.batch_size, on_set)

    def on_step(self, round_number: int, client: str) -> Any:
        """A callback that shows a client's progress."""
        steps = self.prepared.recipe.training.steps

        def show(step: int, loss: float) -> None:
            self.observer.activity(round_number, client, step, steps, f"loss {loss:.3f}")

        return show

    def adapter_config(self) -> str:
        """The text of adapter_config.json."""
        from fedsrd.training.models import adapter_config

        model = self.prepared.recipe.model
        return adapter_config(self.prepared.lora, model.id, model.revision)

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        training = self.prepared.recipe.training
        return [encode(e, training.prompt, self.adapted.tokenizer, training.max_length) for e in examples]


def load_examples(data: DataSection, owner: str, observer: Observer) -> list[Example]:
    """The examples of one data section.

    Raises:
        DataError: they cannot be read, or there are none; the message names `owner`.
    """
    from fedsrd.data import catalog, local

    try:
        if data.source.startswith(EMBEDDED):
            examples = catalog.load(data.source.removeprefix(EMBEDDED), _split(data), observer.say)[: data.limit]
        else:
            examples = local.load_local(
                data.source, split=data.split, columns=data.columns, template=data.template, limit=data.limit
            )
    except DataError as error:
        raise DataError(f"{owner}: {error}") from None
    if not examples:
        raise DataError(f"{owner}: {data.source} has no examples in split {data.split!r}; every client needs one")
    return examples


def _check_data(data: DataSection, owner: str) -> None:
    from fedsrd.data import catalog, local

    try:
        if data.source.startswith(EMBEDDED):
            catalog.get(data.source.removeprefix(EMBEDDED), _split(data))
        else:
            local.check_local(data.source, split=data.split, columns=data.columns, template=data.template)
    except DataError as error:
        raise DataError(f"{owner}: {error}") from None


def _split(data: DataSection) -> Any:
    if data.split not in ("train", "test"):
        raise DataError(f"{data.source} has splits 'train' and 'test', not {data.split!r}")
    return data.split


def _options(recipe: Recipe) -> methods.MethodOptions:
    kind = methods.get(recipe.method["name"]).Options
    return kind.model_validate({key: value for key, value in recipe.method.items() if key != "name"})

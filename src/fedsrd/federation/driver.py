"""A run from its first round, or from where it stopped, to its last: rounds, records and what is on the disk."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedsrd import methods
from fedsrd.core.tensors import TensorTable
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.records import of_clients, round_record, start_record, summarise
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.server import Server
from fedsrd.federation.session import Observer
from fedsrd.federation.setup import environment
from fedsrd.federation.sums import Steps
from fedsrd.recipe import Recipe
from fedsrd.runs.card import card
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Summary, rounds_text

Memories = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass
class Driver:
    """One run.

    Attributes:
        recipe: what is run.
        folder: where it is kept.
        table: the model's trained tensors.
        lora: PEFT's config of the adapter.
        rounds: who is asked and what is closed.
        observer: who is told.
        quality: what the record of the server's present version says of quality ("eval", and more).
        memories: what the method keeps at the clients, where their state lives here.
        federation: the name by which clients tell this run from others; "" where they live here.
    """

    recipe: Recipe
    folder: RunFolder
    table: TensorTable
    lora: Any
    rounds: Rounds
    observer: Observer
    quality: Callable[[], Mapping[str, Any]]
    memories: Callable[[], Memories] = dict
    federation: str = ""
    _recipe_digest: str = field(default="", init=False)

    @property
    def server(self) -> Server:
        """Of the rounds."""
        return self.rounds.server

    @property
    def method(self) -> methods.Method:
        """The recipe's."""
        return self.server.config.method

    def begin(self, names: list[str], start_bytes: int) -> list[RoundRecord]:
        """Makes the folder of a new run; gives its records, round 0."""
        self.folder.create(self.recipe, environment())
        self._recipe_digest = self.folder.recipe_digest()
        self._write_adapter_config()
        records = [start_record(start_bytes, names, self.server.digest, self.quality())]
        self._commit(records)
        return records

    def restore(self, checkpoint: Checkpoint, records: list[RoundRecord]) -> None:
        """Takes the state of the last complete round. What a crash has left one round behind it is written again."""
        self._recipe_digest = checkpoint.recipe
        self.server.restore(checkpoint.state, checkpoint.server)
        self.server.ledger.restore(checkpoint.missed, checkpoint.known, checkpoint.counted)
        self.server.history.restore(checkpoint.norms)
        if checkpoint.steps:
            self.server.steps = Steps(dict(checkpoint.steps))
        self._write_adapter_config()
        self._write(checkpoint, records)
        self.observer.say(f"Continuing after round {checkpoint.state.version} of {self.recipe.rounds}")
        stored, now = self.folder.stored_recipe().environment, environment()
        changed = [f"{name} {was} -> {now[name]}" for name, was in stored.items() if now.get(name, was) != was]
        if changed:
            self.observer.warn(
                f"the run began with other versions ({', '.join(changed)}): its bytes may differ from one that did "
                "not stop"
            )

    def run(self, records: list[RoundRecord], *, keep_payloads: bool = False) -> None:
        """Runs to the last round and settles; every complete round is on the disk. Appends to `records`.

        Raises:
            FederationError: as `Rounds`, or the disk is full. The last complete round is kept.
        """
        for record in records:
            self.observer.round_done(record)
        while self.server.version < self.recipe.rounds:
            done = self.rounds.one_round()
            began = time.perf_counter()
            quality = self.quality()
            seconds = done.seconds | {"evaluate": time.perf_counter() - began}
            said = {**quality, **of_clients(self.recipe, self.server.version, self.table.elements)}
            records.append(round_record(done, self.table, seconds, said))
            if keep_payloads:
                uplinks = {update.client: update.payload for update in done.closed.accepted}
                self.folder.keep_payloads(self.server.version, uplinks, done.closed.broadcast.payload)
            self._commit(records)
            self.observer.round_done(records[-1])
        sent = {name: size for name, size in self.rounds.finalize().items() if size}
        if sent:
            down = records[-1].bytes_down
            down = down | {name: down.get(name, 0) + size for name, size in sent.items()}
            records[-1] = records[-1].model_copy(update={"bytes_down": down})
            self._commit(records)

    def summarise(self, records: list[RoundRecord]) -> Summary:
        """Writes what is not on the disk yet - the adapter of a changed base, cards, summary.json - and gives the
        summary.
        """
        if self.method.changes_base:
            from fedsrd.training.models import merged_tensors

            tensors, ranks = merged_tensors(self.server.model(), self.server.state.base_delta)
            self.folder.write_adapter(self.adapter_config(ranks), tensors)
        summary = summarise(self.recipe, self.table, records)
        self.folder.write_cards(card(self.recipe, summary))
        self.folder.write_summary(summary)
        return summary

    def adapter_config(self, ranks: Mapping[str, int] | None = None) -> str:
        """The text of adapter_config.json; `ranks` of the modules whose rank is not the recipe's."""
        from fedsrd.training.models import adapter_config

        model = self.recipe.model
        return adapter_config(self.lora, model.id, model.revision, ranks)

    @property
    def _one_adapter(self) -> bool:
        return not self.method.personal and not self.method.changes_base

    def _write_adapter_config(self) -> None:
        if self._one_adapter:
            self.folder.write_adapter_config(self.adapter_config())

    def _adapter(self) -> dict[str, torch.Tensor] | None:
        """The tensors of the one adapter, None where there is none that says all."""
        from fedsrd.training.models import adapter_tensors

        return adapter_tensors(self.server.model()) if self._one_adapter else None

    def _commit(self, records: list[RoundRecord]) -> None:
        server = self.server
        checkpoint = Checkpoint(
            server.state,
            server.memory,
            self.memories(),
            server.ledger.contents(),
            server.ledger.known,
            server.ledger.counted,
            self.federation,
            self._recipe_digest,
            rounds_text(records),
            server.history.contents(),
            {} if server.steps is None else server.steps.words,
        )
        self._write(checkpoint, records)

    def _write(self, checkpoint: Checkpoint, records: list[RoundRecord]) -> None:
        self.folder.commit(checkpoint.state.version, checkpoint.to_bytes(), records, self._adapter())

"""A run whose clients are SuperNodes: the recipe's server, its folder, and Flower as the engine."""

import secrets
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedsrd import plugins
from fedsrd import recipe as recipes
from fedsrd.errors import RecipeError
from fedsrd.federation.driver import Driver
from fedsrd.federation.remote.header import Job
from fedsrd.federation.remote.identity import unbound_names
from fedsrd.federation.remote.log import Log, resident_mib
from fedsrd.federation.remote.site import is_simulation
from fedsrd.federation.resume import restore
from fedsrd.federation.session import EMBEDDED, Assets, Session
from fedsrd.federation.setup import Prepared, check, clip_of, config_of, method_of, noise_of, server_of, told
from fedsrd.federation.starting import rounds_of
from fedsrd.flower.engine import FlowerEngine
from fedsrd.methods import Method, capabilities
from fedsrd.privacy.ledger import kept_secret
from fedsrd.recipe import Recipe
from fedsrd.report import terminal
from fedsrd.report.evaluation import closing_tables
from fedsrd.report.monitor import Monitor
from fedsrd.report.page.write import report
from fedsrd.report.screen import Screen, styled
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Summary

WIDTH = 100
"""Columns, where the output is no terminal but Flower's log."""


def serve(grid: Grid, config: Mapping[str, Any], console: Screen | None = None) -> Summary:
    """Runs (or continues) the federation that the run config describes; gives its summary.

    Args:
        grid: Flower's.
        config: `recipe` (a path at the server, or in the app; empty: the embedded default), `set` (changes of the
            recipe, with semicolons between),
            `out` (the run's folder; empty: runs/NAME-DATE-TIME), `resume`, `keep-payloads`, `import` (a file or module
            with methods).
        console: where to show it; None for the standard output.

    Raises:
        FedSRDError: what is wrong with the recipe, the folder or the run, and what to do.
    """
    console = console or Screen(width=None if Screen().is_terminal else WIDTH)
    if config.get("import"):
        plugins.load(str(config["import"]))
    resume = bool(config.get("resume", False))
    recipe, folder = _chosen(config, resume)
    about = f"{len(recipe.clients)} clients in the recipe, {recipe.rounds} rounds, {recipe.model.id}"
    where = f" on Flower: {about}; into {folder.path.resolve()}"
    console.print(styled("bold", recipe.method["name"], where), soft_wrap=True)
    with Monitor(console, recipe.rounds) as board:
        board.say("Checking folder, data and model")
        folder.check(recipe, resume=resume)
        prepared = Prepared(recipe, folder, *check(_without_private_data(recipe), board, Assets()), resume)
        with folder.locked():
            folder.check(recipe, resume=resume)
            summary, records = _serve(grid, recipe, prepared, _Watch(board, Log(folder.path / "log.jsonl")), config)
    for table in closing_tables(records, summary):
        console.print(table)
    console.print(terminal.totals(summary), highlight=False, soft_wrap=True)
    for line in terminal.privacy(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for adapter in folder.adapters():
        console.print(f"Adapter: {adapter}", highlight=False, soft_wrap=True)
    console.print(f"Report: {report([folder.path], folder.path / 'report.html')}", highlight=False, soft_wrap=True)
    return summary


class _Watch:
    """Tells the board, and the log."""

    def __init__(self, board: Monitor, log: Log) -> None:
        self._board = board
        self._log = log

    def event(self, kind: str, **fields: Any) -> None:
        self._log.write(kind, **fields)
        self._board.event(kind, **fields)

    def say(self, text: str) -> None:
        self._log.write("said", text=text)
        self._board.say(text)

    def warn(self, text: str) -> None:
        self._log.write("warning", text=text)
        self._board.warn(text)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        self._board.activity(round_number, what, done, total, detail)

    def round_done(self, record: RoundRecord) -> None:
        about = record.model_dump(include={"digest", "bytes_up", "bytes_down", "rejected"}, exclude_unset=True)
        self._log.write("round", round=record.round, memory_mib=resident_mib(), **about)
        self._board.round_done(record)


def _serve(
    grid: Grid, recipe: Recipe, prepared: Prepared, watch: _Watch, config: Mapping[str, Any]
) -> tuple[Summary, list[RoundRecord]]:
    folder = prepared.folder
    # A damaged state must show before weights are read.
    restored = restore(folder, watch.warn)
    server = server_of(
        recipe, config_of(recipe, prepared.table), lambda: kept_secret(folder.state.parent / "noise.key")
    )
    session = _judge(recipe, prepared, watch, server.config.method)
    federation = restored[0].federation if restored else secrets.token_hex(8)

    def quality() -> dict[str, Any]:
        return session.record(server.version, server.model(), server.state.base_delta) if session else {"eval": {}}

    asked = recipe.participation
    keys = {entry.name: entry.key for entry in recipe.clients if entry.key is not None}
    if (unbound := unbound_names(server.roster, keys)) and not is_simulation():
        watch.warn(unbound)
    engine = FlowerEngine(
        grid,
        server,
        federation,
        partial(_job, recipe),
        deadline=asked.deadline,
        minimum=asked.minimum,
        watch=watch,
        keys=keys,
    )
    driver = Driver(
        recipe,
        folder,
        prepared.table,
        prepared.lora,
        rounds_of(
            recipe,
            server,
            engine,
            watch.warn,
            federation=federation,
            keys=keys,
            journal=folder.state.with_name("secure.json"),
        ),
        watch,
        quality,
        federation=federation,
    )
    if restored is None:
        records = driver.begin([], 0)
    else:
        checkpoint, records = restored
        driver.restore(checkpoint, records)
    driver.run(records, keep_payloads=bool(config.get("keep-payloads", False)))
    return driver.summarise(records), records


def _chosen(config: Mapping[str, Any], resume: bool) -> tuple[Recipe, RunFolder]:
    path = str(config.get("recipe") or "")
    overrides = [part.strip() for part in str(config.get("set") or "").split(";") if part.strip()]
    out = str(config.get("out") or "")
    if resume and not out:
        raise RecipeError("resume = true: which run? Name its folder with out")
    if resume and not path and not overrides:
        folder = RunFolder(Path(out))
        recipe = folder.stored_recipe()
    else:
        recipe = recipes.load(_found(path) if path else None, overrides)
        folder = RunFolder(Path(out) if out else Path("runs") / f"{recipe.name}-{terminal.now()}")
    capabilities.check(method_of(recipe.method), capabilities.NETWORK)
    return recipe, folder


def _found(path: str) -> Path:
    """A recipe's path: from the server's working folder, else from the app's own, which Flower puts on sys.path."""
    places = [Path(entry) for entry in sys.path if (Path(entry) / "pyproject.toml").is_file()]
    return next((place / path for place in (Path(), *places) if (place / path).is_file()), Path(path))


def _without_private_data(recipe: Recipe) -> Recipe:
    """The recipe without what lies at the clients: the server cannot check it, and need not."""
    clients = [
        entry
        if all(data.source.startswith(EMBEDDED) for data in entry.sections)
        else entry.model_copy(update={"data": None})
        for entry in recipe.clients
    ]
    return recipe.model_copy(update={"clients": clients})


def _judge(recipe: Recipe, prepared: Prepared, watch: _Watch, method: Method) -> Session | None:
    """The model and the held-out sets at the server; None where there is nothing to measure here."""
    if not recipe.evaluation.sets:
        return None
    if method.personal:
        watch.warn(f"{method.name} ends with a model at each client: quality is not measured at the server")
        return None
    return Session(recipe.model_copy(update={"clients": []}), prepared.lora, watch, Assets())


def _noise(recipe: Recipe) -> dict[str, Any]:
    """What a job says of the noise that clients add to what is masked."""
    found = noise_of(recipe)
    return {} if found is None else {"noise": found[0], "shares": found[1]}


def _job(recipe: Recipe, name: str) -> Job:
    entry = next((entry for entry in recipe.clients if entry.name == name), None)
    return Job(
        method=recipe.method,
        seed=recipe.seed,
        uplink=recipe.wire.uplink,
        sum=recipe.summed,
        **_noise(recipe),
        rank=None if entry is None else entry.rank,
        clip=clip_of(recipe),
        recipe=told(recipe),
        data=[] if entry is None else list(entry.sections),
    )

"""FedSRD as a Flower strategy, for projects that have a ServerApp of their own.

    strategy = FedSRD()
    result = strategy.start(grid, ArrayRecord(get_peft_model_state_dict(model)), num_rounds=10)

Their clients add `fedsrd_mod`. Everything else is the server of every other FedSRD run.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import getLogger
from os import PathLike
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsrd.core.tensors import GlobalState, TensorTable
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.messages import Update
from fedsrd.federation.remote.header import Job, RecordNames
from fedsrd.federation.remote.identity import unbound_names
from fedsrd.federation.remote.site import is_simulation
from fedsrd.federation.server import Server
from fedsrd.federation.transition import FederationConfig
from fedsrd.flower import options as arguments
from fedsrd.flower.arrays import arrays_of, tensors_of
from fedsrd.flower.engine import Evaluated, FlowerEngine
from fedsrd.flower.records import METRICS, means
from fedsrd.flower.rounds import StrategyRounds
from fedsrd.flower.store import History, Noted, Store, kept
from fedsrd.flower.watch import LogWatch
from fedsrd.methods import capabilities
from fedsrd.recipe import ParticipationSection, WireSection

LOGGER = getLogger("flwr")
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]
STRANGER = " (does its ClientApp have mods=[fedsrd_mod]?)"
HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class FedSRD(Strategy):
    """Sparse updates up, one sparse factor down, in the place of FedAvg, whose arguments it takes by their names.

    Args:
        method: any of FedSRD's methods that needs no more of the clients than their factors: "fedsrd", "fedavg", ...
        options: the method's, as in a recipe's [method] table; or each by its name: `FedSRD(alpha=0.9)`.
        server_optimizer: as a recipe's [server_optimizer] table; None for the method's own, or none.
        fraction_train: share of the clients that are asked in a round, rounded down; more than 0.
        fraction_evaluate: share of the clients that evaluate after a round, by an evaluate function of their own.
        min_train_nodes: fewest clients that are asked in a round.
        min_evaluate_nodes: fewest clients that evaluate after a round.
        min_available_nodes: fewest clients that a round waits for, as long as it takes; `min_train_nodes`, if more.
        weighted_by_key: of the clients' MetricRecords: a whole number of 1 or more, by which updates and metrics are
            weighted.
        arrayrecord_key: under which the clients' functions find the adapter.
        configrecord_key: under which they find their config.
        train_metrics_aggr_fn: makes one MetricRecord of the clients', given RecordDicts that hold a MetricRecord each
            (no arrays: what travels are sparse updates), and `weighted_by_key`; None for the weighted mean.
        evaluate_metrics_aggr_fn: the same of their evaluation.
        min_updates: fewest usable updates with which a round closes; with fewer, clients are asked again.
        weighting: every client alike, or by its number of examples.
        seed: of whatever the method draws, and of who is asked.
        wire: how payloads are coded (`recipe.WireSection`, or a dict of its keys).
        norm_bound: leaves out updates whose norm is so many times what is usual (`recipe.ParticipationSection`); 0 for
            no bound.
        max_share: largest share of one client, where clients count by their examples (there, too); 1 for FedAvg's.
        attempts: how often clients are asked before a round with too few answers ends the run.
        keys: the clients' public keys by name (`fedsrd key`): nobody else joins then, and each name only with its key.
        checkpoint: a folder of the server's. After each round it holds all that the run needs to go on; a new start
            with the same arguments goes on after the last complete round, to the same bytes. None: nothing is kept.

    Raises:
        RecipeError: an argument is unknown, or of a wrong type or range; or the method is not one that a strategy can
            follow.
    """

    def __init__(
        self,
        method: str = "fedsrd",
        *,
        options: Mapping[str, Any] | None = None,
        server_optimizer: Mapping[str, Any] | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: arguments.Aggregate | None = None,
        evaluate_metrics_aggr_fn: arguments.Aggregate | None = None,
        min_updates: int = 1,
        weighting: Literal["uniform", "examples"] = "examples",
        seed: int = 0,
        wire: WireSection | Mapping[str, Any] | None = None,
        norm_bound: float = 10.0,
        max_share: float = 0.5,
        attempts: int = 3,
        keys: Mapping[str, str] | None = None,
        checkpoint: str | PathLike[str] | None = None,
        **method_options: Any,
    ) -> None:
        given = locals()
        self._chosen = arguments.chosen(method, options, method_options)
        self.method = arguments.method_of_arguments(self._chosen)
        capabilities.check(self.method, capabilities.STRATEGY, f"method = {method!r}")
        self._optimizer = arguments.optimizer(self.method, server_optimizer)
        self.options = arguments.checked({name: given[name] for name in arguments.StrategyOptions.model_fields})
        self._names = RecordNames(arrays=arrayrecord_key, config=configrecord_key, weight=weighted_by_key)
        self._store = None if self.options.checkpoint is None else Store(self.options.checkpoint)
        self._timeout, self._simulated = 3600.0, False
        self._federation = ""
        self._job: Job | None = None
        self._engine: FlowerEngine | None = None
        self._rounds: StrategyRounds | None = None
        self._history = History(options={}, rounds=[])
        self._asked: dict[str, int] = {}

    @property
    def version(self) -> int:
        """How many rounds the server's state holds: for a loop of one's own that goes on from a checkpoint."""
        return self._ready()[0].server.version

    def summary(self) -> None:
        """Logs what this is."""
        options = self.options
        LOGGER.info("\t├── FedSRD: %s", self._chosen)
        LOGGER.info("\t├── Train: fraction %.2f, at least %d", options.fraction_train, options.min_train_nodes)
        LOGGER.info("\t├── Evaluate: fraction %.2f, at least %d", options.fraction_evaluate, options.min_evaluate_nodes)
        LOGGER.info("\t├── Waits for at least %d clients", options.needed)
        LOGGER.info("\t└── Checkpoint: %s", options.checkpoint or "none")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """As Flower's, with rounds that close at `timeout` and are repeated where too few answered. A subclass that
        has hooks of its own (`configure_train`, ...) runs in Flower's loop.

        Args:
            grid: Flower's.
            initial_arrays: the adapter, float32, under the names of PEFT's state dict. Of a run that goes on from a
                checkpoint, only its shapes count.
            num_rounds: how many.
            timeout: seconds that a round waits for answers.
            train_config: for the clients' train functions, which get it with what the method says.
            evaluate_config: for their evaluate functions.
            evaluate_fn: called at the server with the round (0: before the first) and the adapter.

        Raises:
            ModelError: the arrays are not a LoRA adapter's.
            RecipeError: a config holds bytes, or the checkpoint is of a run with other arguments.
            RunFolderError: the checkpoint is damaged, or in use.
            FederationError: a round had too few usable answers in every attempt, or too few clients can take part.
        """
        arguments.check_start(num_rounds, timeout)
        if any(getattr(type(self), hook) is not getattr(FedSRD, hook) for hook in HOOKS):
            if self._store is not None:
                raise RecipeError("checkpoint with hooks of your own: Flower's loop cannot go on; expected one of them")
            self._engine, self._timeout = None, timeout
            return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        try:
            self.prepare(grid, initial_arrays, timeout, train_config, evaluate_config)
            self.summary()
            self._run(num_rounds, evaluate_fn)
        finally:
            if self._store is not None:
                self._store.close()
        return self._result()

    def prepare(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
    ) -> None:
        """Makes server and engine for an adapter, or goes on from the checkpoint; `start` does this. Arguments and
        errors as there.
        """
        options, tensors = self.options, tensors_of(initial_arrays)
        table = TensorTable.of(tensors)
        job = self._job = Job(
            method=self._chosen,
            seed=options.seed,
            uplink=options.wire.uplink,
            tensors=list(table.specs),
            records=self._names,
            train_config=arguments.settings(train_config, "train_config"),
            evaluate_config=arguments.settings(evaluate_config, "evaluate_config"),
        )
        config = FederationConfig(
            self.method, table, options.seed, options.wire.uplink, options.wire.downlink, self._optimizer
        )
        server = Server(
            config,
            options.weighting,
            minimum=options.min_updates,
            norm_bound=options.norm_bound or None,
            max_share=options.max_share,
        )
        server.seeded = False
        # What a method replicates besides the model starts at zero.
        identity = arguments.identity(options, self.method, self._optimizer, job.train_config, table)
        self._begin(server, GlobalState({**config.start().tensors, **tensors}), identity)
        self._simulated = is_simulation() or type(grid).__name__ == "InMemoryGrid"  # Ray may start after us
        if (unbound := unbound_names([], options.keys)) and not self._simulated:
            LOGGER.warning(unbound)
        self._engine = FlowerEngine(
            grid,
            server,
            self._federation,
            lambda _: self._job or job,
            deadline=timeout,
            minimum=options.needed,
            watch=LogWatch(),
            keys=options.keys,
            stranger=STRANGER,
        )
        asked = ParticipationSection(attempts=options.attempts)
        self._rounds = StrategyRounds(
            server=server,
            engine=self._engine,
            participation=asked,
            seed=options.seed,
            warn=LOGGER.warning,
            options=options,
        )

    def _begin(self, server: Server, start: GlobalState, identity: dict[str, Any]) -> None:
        """Gives the server what the checkpoint holds, or else the start, which the checkpoint then has."""
        found = None if self._store is None else self._store.open(identity)
        if found is None:
            server.restore(start)
            self._federation = secrets.token_hex(8)
            self._history = History(options=identity, rounds=[Noted()])
            self._save(server)
            return
        checkpoint, self._history = found
        server.restore(checkpoint.state, dict(checkpoint.server))
        server.ledger.restore(checkpoint.missed, checkpoint.known, checkpoint.counted)
        server.history.restore(checkpoint.norms)
        self._federation = checkpoint.federation
        LOGGER.info("Going on after round %d, from %s", server.version, self.options.checkpoint)

    def _save(self, server: Server) -> None:
        if self._store is not None:
            self._store.save(server, self._federation, self._history)

    def _run(self, num_rounds: int, evaluate_fn: Evaluate | None) -> None:
        """All rounds that are left; each is kept once it is complete, and again with what evaluation found."""
        rounds, _ = self._ready()
        server, history = rounds.server, self._history
        if server.version > num_rounds:
            raise RecipeError(
                f"num_rounds = {num_rounds}: checkpoint = {str(self.options.checkpoint)!r} has {server.version} rounds "
                "already; expected as many or more, or another folder"
            )
        if history.settled and server.version < num_rounds and self.method.keeps_client_state and self._simulated:
            LOGGER.warning("simulated clients keep nothing after a run's end: their error feedback starts anew")
        self._measure(evaluate_fn)
        while server.version < num_rounds:
            done = rounds.one_round()
            metrics = self._train_metrics(done.closed.accepted)
            LOGGER.info("[ROUND %d/%d] %s", server.version, num_rounds, metrics)
            LOGGER.info("\t└──> %d bytes up, %d down", sum(done.bytes_up.values()), sum(done.bytes_down.values()))
            history.rounds.append(Noted(train=dict(metrics)))
            history.settled = False
            self._save(server)
            self._measure(evaluate_fn)
        if not history.settled:
            rounds.finalize()
            history.settled = True
            self._save(server)

    def _measure(self, evaluate_fn: Evaluate | None) -> None:
        """Has the newest version evaluated, if that has not been done."""
        rounds, engine = self._ready()
        number, noted = rounds.server.version, self._history.rounds[-1]
        if noted.measured:
            return
        if number and (names := rounds.evaluators(number)):
            down = sum(rounds.server.sync(name).size for name in names)
            found = self._evaluation_metrics(engine.evaluate(names, number))
            noted.clients = None if found is None else dict(found)
            rounds.take_reports()
            LOGGER.info("\t└──> %d bytes down to evaluate: %s", down, noted.clients)
        if evaluate_fn is not None:
            noted.server = kept(evaluate_fn(number, arrays_of(rounds.server.model())), "evaluate_fn")
            LOGGER.info("\t└──> at the server: %s", noted.server)
        noted.measured = True
        self._save(rounds.server)

    def _result(self) -> Result:
        result = Result()
        result.arrays = arrays_of(self._ready()[0].server.model())
        for number, noted in enumerate(self._history.rounds):
            if number:
                result.train_metrics_clientapp[number] = MetricRecord(dict(noted.train))
            if noted.clients is not None:
                result.evaluate_metrics_clientapp[number] = MetricRecord(dict(noted.clients))
            if noted.server is not None:
                result.evaluate_metrics_serverapp[number] = MetricRecord(dict(noted.server))
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's messages, for a loop of one's own. `arrays` count in the first round only: after it the server
        has them. `config` is the round's.
        """
        if self._engine is None or self._job is None:
            self.prepare(grid, arrays, self._timeout, train_config=config)
        else:
            self._job = self._job.model_copy(update={"train_config": arguments.settings(config, "train_config")})
        rounds, engine = self._ready()
        messages = {name: engine.message(name, task) for name, task in rounds.tasks(1, {}).items()}
        self._asked = {name: message.metadata.dst_node_id for name, message in messages.items()}
        return list(messages.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Closes the round; (None, None) where too few answers were usable."""
        rounds, engine = self._ready()
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        number = rounds.server.version + 1
        answers = {name: engine.read(name, number, by_node.get(node)) for name, node in self._asked.items()}
        try:
            closed = rounds.close(answers)
        except FederationError as error:
            LOGGER.warning("%s", error)
            return None, None
        for failure in closed.rejected:
            LOGGER.warning("round %d: %s is left out: %s", server_round, failure.client, failure.reason)
        metrics = self._train_metrics(closed.accepted)
        self._history.rounds.append(Noted(train=dict(metrics), measured=True))
        self._save(rounds.server)
        return arrays_of(rounds.server.model()), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of an evaluation at the clients, for a loop of one's own; what is evaluated is the server's
        newest version, whatever `arrays` are.
        """
        rounds, engine = self._ready()
        if self._job is not None:
            self._job = self._job.model_copy(update={"evaluate_config": arguments.settings(config, "evaluate_config")})
        messages = {name: engine.evaluation(name, server_round) for name in rounds.evaluators(server_round)}
        self._asked = {name: message.metadata.dst_node_id for name, message in messages.items()}
        return list(messages.values())

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The clients' metrics; None where nobody had any."""
        rounds, engine = self._ready()
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        found = [engine.read_evaluation(name, by_node.get(node)) for name, node in self._asked.items()]
        rounds.take_reports()
        return self._evaluation_metrics([one for one in found if one is not None])

    def _ready(self) -> tuple[StrategyRounds, FlowerEngine]:
        if self._rounds is None or self._engine is None:
            raise FederationError("FedSRD.prepare(grid, initial_arrays) must come first; FedSRD.start does it")
        return self._rounds, self._engine

    def _evaluation_metrics(self, found: Sequence[Evaluated]) -> MetricRecord | None:
        """The clients' own metrics, weighted by their examples; None where there are none."""
        return self._together(found, "evaluate_metrics_aggr_fn") if found else None

    def _train_metrics(self, accepted: Iterable[Update]) -> MetricRecord:
        updates = list(accepted)
        told = [
            (update.examples or 0, {**update.metrics, **({} if update.loss is None else {"train_loss": update.loss})})
            for update in updates
        ]
        found = self._together(told, "train_metrics_aggr_fn")
        return MetricRecord({**found, "uplink-bytes": sum(len(update.payload) for update in updates)})

    def _together(self, told: Sequence[Evaluated], name: str) -> MetricRecord:
        weight, function = self._names.weight, getattr(self.options, name)
        if function is None:
            return MetricRecord({**means(told), weight: sum(count for count, _ in told)})
        contents = [RecordDict({METRICS: MetricRecord({**found, weight: count or 1})}) for count, found in told]
        return MetricRecord(kept(function(contents, weight), name) or {})

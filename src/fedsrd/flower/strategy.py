"""FedSRD as a Flower strategy, for projects that have a ServerApp of their own.

    strategy = FedSRD()
    result = strategy.start(grid, ArrayRecord(get_peft_model_state_dict(model)), num_rounds=10)

Their clients add `fedsrd_mod`. Everything else is the server of every other FedSRD run.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import getLogger
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from pydantic import TypeAdapter

from fedsrd.core.tensors import GlobalState, TensorTable
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.messages import Update
from fedsrd.federation.remote.header import Job
from fedsrd.federation.remote.site import is_simulation
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.sampling import choose, share
from fedsrd.federation.server import Server
from fedsrd.federation.setup import method_of, optimizer_of
from fedsrd.federation.transition import FederationConfig
from fedsrd.flower.engine import FlowerEngine, unbound_names
from fedsrd.methods import capabilities
from fedsrd.recipe import ParticipationSection, PublicKey, WireSection
from fedsrd.training.models import adapter_tensors, tensors_of_adapter

LOGGER = getLogger("flwr")


class FedSRD(Strategy):
    """Sparse updates up, one sparse factor down, in the place of FedAvg. It keeps no checkpoint; FedSRD's own app does.

    Args:
        method: any of FedSRD's methods that needs no more of the clients than their factors: "fedsrd", "fedavg", ...
        options: the method's, as in a recipe's [method] table.
        server_optimizer: as a recipe's [server_optimizer] table; None for the method's own, or none.
        fraction_train: share of the clients that are asked in a round.
        fraction_evaluate: share of the clients that evaluate after a round, by an evaluate function of their own.
        min_train_nodes: fewest usable updates that a round needs, and fewest clients to wait for.
        weighting: every client alike, or by its number of examples.
        seed: of whatever the method draws, and of who is asked.
        wire: how payloads are coded (`recipe.WireSection`).
        norm_bound: leaves out updates whose norm is so many times what is usual (`recipe.ParticipationSection`); 0 for
            no bound.
        max_share: largest share of one client, where clients count by their examples (there, too).
        attempts: how often clients are asked before a round with too few answers ends the run.
        keys: the clients' public keys by name (`fedsrd key`): nobody else joins then, and each name only with its key.

    Raises:
        RecipeError: the method, or an option of it, is not one of ours.
    """

    def __init__(
        self,
        method: str = "fedsrd",
        *,
        options: Mapping[str, Any] | None = None,
        server_optimizer: Mapping[str, Any] | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 1,
        weighting: Literal["uniform", "examples"] = "examples",
        seed: int = 0,
        wire: WireSection | None = None,
        norm_bound: float = 10.0,
        max_share: float = 0.5,
        attempts: int = 3,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self._chosen = {"name": method, **(options or {})}
        self.method = method_of(self._chosen)
        capabilities.check(self.method, capabilities.STRATEGY, f"method = {method!r}")
        self._optimizer = optimizer_of(self.method, server_optimizer)
        self.participation = ParticipationSection(
            fraction=fraction_train,
            minimum=min_train_nodes,
            norm_bound=norm_bound,
            max_share=max_share,
            attempts=attempts,
        )
        self._fraction_evaluate = fraction_evaluate
        self._weighting = weighting
        self._seed = seed
        self._wire = wire or WireSection()
        self._keys = {name: TypeAdapter(PublicKey).validate_python(key) for name, key in (keys or {}).items()}
        self._engine: FlowerEngine | None = None
        self._rounds: Rounds | None = None
        self._asked: dict[str, int] = {}

    def summary(self) -> None:
        """Logs what this is."""
        asked = self.participation
        LOGGER.info("\t├── FedSRD: %s", self._chosen)
        LOGGER.info("\t└── Train: fraction %.2f, at least %d clients", asked.fraction, asked.minimum)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """As Flower's, with rounds that close at `timeout` and are repeated where too few answered.

        Args:
            grid: Flower's.
            initial_arrays: the adapter, under the names of PEFT's state dict.
            num_rounds: how many.
            timeout: seconds that a round waits for answers.
            train_config: for the clients' train functions, which get it with what the method says.
            evaluate_config: for their evaluate functions.
            evaluate_fn: called at the server with the round (0: before the first) and the adapter.

        Raises:
            ModelError: the arrays are not a LoRA adapter's.
            RecipeError: a config holds bytes.
            FederationError: a round had too few usable answers in every attempt.
        """
        self.prepare(grid, initial_arrays, timeout, train_config, evaluate_config)
        rounds, _ = self._ready()
        server = rounds.server
        self.summary()
        result = Result()
        result.arrays = self._arrays(server)
        _note(result.evaluate_metrics_serverapp, 0, evaluate_fn and evaluate_fn(0, result.arrays))
        while server.version < num_rounds:
            done = rounds.one_round()
            number = server.version
            result.arrays = self._arrays(server)
            up = sum(len(update.payload) for update in done.closed.accepted)
            metrics = self._metrics(done.closed.accepted)
            LOGGER.info("[ROUND %d/%d] %s", number, num_rounds, metrics)
            LOGGER.info("\t└──> %d bytes up, %d down", up, sum(done.bytes_down.values()))
            result.train_metrics_clientapp[number] = metrics
            if looked := self._evaluated(number):
                LOGGER.info("\t└──> %s", looked)
                result.evaluate_metrics_clientapp[number] = looked
            _note(result.evaluate_metrics_serverapp, number, evaluate_fn and evaluate_fn(number, result.arrays))
        rounds.finalize()
        return result

    def prepare(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
    ) -> None:
        """Makes server and engine for an adapter; `start` does this. Arguments and errors as there."""
        tensors = {
            name: tensor.float() for name, tensor in tensors_of_adapter(initial_arrays.to_torch_state_dict()).items()
        }
        table = TensorTable.of(tensors)
        job = Job(
            method=self._chosen,
            seed=self._seed,
            uplink=self._wire.uplink,
            tensors=list(table.specs),
            train_config=_settings(train_config, "train_config"),
            evaluate_config=_settings(evaluate_config, "evaluate_config"),
        )
        asked = self.participation
        config = FederationConfig(
            self.method, table, self._seed, self._wire.uplink, self._wire.downlink, self._optimizer
        )
        server = Server(
            config,
            self._weighting,
            minimum=asked.minimum,
            norm_bound=asked.norm_bound or None,
            max_share=asked.max_share,
        )
        start = config.start()
        # What a method replicates besides the model starts at zero.
        server.restore(GlobalState({**start.tensors, **tensors}))
        server.seeded = False
        if (unbound := unbound_names([], self._keys)) and not is_simulation():
            LOGGER.warning(unbound)
        self._engine = FlowerEngine(
            grid,
            server,
            secrets.token_hex(8),
            lambda _: job,
            deadline=timeout,
            minimum=asked.minimum,
            watch=_Told(),
            keys=self._keys,
        )
        self._rounds = Rounds(server, self._engine, asked, self._seed, LOGGER.warning)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's messages, for a loop of one's own. `arrays` and `config` count in the first round only: after it
        the server has them.
        """
        if self._engine is None:
            self.prepare(grid, arrays, train_config=config)
        rounds, engine = self._ready()
        tasks = rounds.tasks(1, {})
        messages = [engine.message(name, task) for name, task in tasks.items()]
        self._asked = {name: message.metadata.dst_node_id for name, message in zip(tasks, messages, strict=True)}
        return messages

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
        return self._arrays(rounds.server), self._metrics(closed.accepted)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nobody: in a loop of one's own, quality is measured at the server (`evaluate_fn`)."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing."""
        return None

    def _evaluated(self, number: int) -> MetricRecord | None:
        """The clients' own metrics, weighted by their examples."""
        rounds, engine = self._ready()
        names = rounds.names(wait=False)
        wanted = share(len(names), self._fraction_evaluate, 1) if self._fraction_evaluate else 0
        found = engine.evaluate(choose(names, wanted, self._seed, number, -1), number) if wanted else []
        rounds.take_reports()
        if not found:
            return None
        keys = dict.fromkeys(key for _, metrics in found for key in metrics)
        means = {key: _mean([(metrics[key], count) for count, metrics in found if key in metrics]) for key in keys}
        return MetricRecord({**means, "num-examples": sum(count for count, _ in found)})

    def _ready(self) -> tuple[Rounds, FlowerEngine]:
        if self._rounds is None or self._engine is None:
            raise FederationError("FedSRD.prepare(grid, initial_arrays) must come first; FedSRD.start does it")
        return self._rounds, self._engine

    @staticmethod
    def _arrays(server: Server) -> ArrayRecord:
        return ArrayRecord({name: tensor.clone() for name, tensor in adapter_tensors(server.model()).items()})

    @staticmethod
    def _metrics(accepted: Iterable[Update]) -> MetricRecord:
        updates = list(accepted)
        told = [(update.loss, update.examples or 1) for update in updates if update.loss is not None]
        loss = {"train_loss": _mean(told)} if told else {}
        return MetricRecord(
            {
                **loss,
                "num-examples": sum(update.examples or 0 for update in updates),
                "uplink-bytes": sum(len(update.payload) for update in updates),
            }
        )


def _settings(config: ConfigRecord | None, what: str) -> dict[str, Any]:
    found = dict(config or {})
    for key, value in found.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bytes) for one in values):
            raise RecipeError(f"{what}: {key!r} holds bytes; expected numbers, texts, or lists of them")
    return found


class _Told:
    """An engine's watch that tells Flower's log."""

    def event(self, kind: str, **fields: Any) -> None:
        told = ", ".join(f"{key} {value}" for key, value in fields.items() if value is not None)
        LOGGER.info("\t%s: %s", kind, told)


def _note(into: dict[int, MetricRecord], number: int, found: MetricRecord | None) -> None:
    if found is not None:
        into[number] = found


def _mean(found: Sequence[tuple[float, int]]) -> float:
    """Of values weighted by their counts; shares first, so that no product overflows."""
    total = sum(count for _, count in found)
    return sum(value * (count / total) for value, count in found)

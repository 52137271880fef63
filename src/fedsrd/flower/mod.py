"""For Flower projects that have their own ClientApp: a mod that puts FedSRD between their training and the network.

    app = ClientApp(mods=[fedsrd_mod])

The train function stays as it is: it gets all of the adapter's arrays and gives them back trained. What travels is the
sparse update of the method that the server's `FedSRD` strategy names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, Context, Message, MetricRecord, RecordDict

from fedsrd.core.factors import FACTORS, Base, Factor, Factors, LoraPair, ShapeTable
from fedsrd.errors import FederationError
from fedsrd.federation.client import Client, Trainer
from fedsrd.federation.setup import method_of
from fedsrd.flower.node import respond
from fedsrd.flower.notes import NOTE, Work
from fedsrd.flower.replica import Replica
from fedsrd.flower.site import Site
from fedsrd.training.models import adapter_tensors, factors_of_adapter

LARGEST = 1 << 31
"""Most adapter parameters that a server may name; a client's own code knows its model, this mod does not."""

Train = Callable[[Message, Context], Message]


def fedsrd_mod(message: Message, context: Context, call_next: Train) -> Message:
    """A Flower mod (`flwr.clientapp.typing.Mod`).

    The train function's message holds `arrays`, the adapter under the names of PEFT's state dict (float32), and
    `config` with the strategy's train config, the round (`server-round`), the factors that the method trains
    (`train-factors`: "BA", "B" or "A") and `proximal-mu`. Its reply must hold one ArrayRecord with the same names, and
    one MetricRecord with `num-examples`; `train_loss` is shown where it is there. An evaluate function gets `arrays`,
    the evaluate config and the round, and replies with one MetricRecord with `num-examples`. Node config as for our own
    client (`site`): `client`, `state`.

    Raises:
        FederationError: the train function's reply is not that; the server is told, and goes on without this client.
    """
    if NOTE not in message.content.config_records:
        return call_next(message, context)
    return respond(message, context, _Borrowed(message, context, call_next))


@dataclass(frozen=True)
class _Borrowed:
    """`node.Workshop` of a client whose own code trains."""

    strict = False

    message: Message
    context: Context
    call_next: Train

    def table(self, work: Work) -> ShapeTable:
        table = work.table()
        if not table.modules or table.elements > LARGEST:
            raise FederationError(
                f"the server names {len(table.modules)} modules with {table.elements} parameters; expected 1 to "
                f"{LARGEST} parameters (is the server's app FedSRD's own, not a FedSRD strategy?)"
            )
        return table

    def trainer(self, work: Work, site: Site) -> Trainer:
        if method_of(work.method).changes_base:
            raise FederationError(
                f"method {work.method['name']} changes the frozen weights, which a train function of one's own cannot "
                "follow; use FedSRD's own client app"
            )
        return _Trainer(self, work.train_config)

    def look(self, client: Client, work: Work, round_number: int) -> RecordDict:
        reply = self.call({**work.evaluate_config, "server-round": round_number}, client.model(client.factors))
        metrics = list(reply.content.metric_records.values())
        if len(metrics) != 1 or "num-examples" not in metrics[0]:
            raise FederationError(
                f"the evaluate function's reply has {len(metrics)} MetricRecords; expected one, with num-examples"
            )
        return RecordDict({"metrics": metrics[0]})

    def call(self, config: dict[str, ConfigRecordValues], factors: Factors) -> Message:
        """The reply of the project's own function for these factors."""
        arrays = ArrayRecord({name: tensor.clone() for name, tensor in adapter_tensors(factors).items()})
        task, sent = self.message, self.message.content
        task.content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
        try:
            reply = self.call_next(task, self.context)
        finally:
            task.content = sent
        if reply.has_error():
            raise FederationError(f"the client's own function failed: {reply.error.reason}")
        return reply

    def finish(self, client: Client, work: Work, site: Site, replica: Replica) -> None:
        if site.simulated:
            replica.remove()


@dataclass(frozen=True, slots=True)
class _Result:
    factors: dict[str, LoraPair]
    loss: float


class _Trainer:
    """A project's train function as the federation sees training."""

    def __init__(self, borrowed: _Borrowed, config: Mapping[str, ConfigRecordValues]) -> None:
        self._borrowed = borrowed
        self._config = config
        self.count = 0

    def train(
        self,
        start: Factors,
        round_number: int,
        trained: Sequence[Factor],
        on_step: Callable[[int, float], None],
        *,
        base: Base,
        proximal: float,
    ) -> _Result:
        config: dict[str, ConfigRecordValues] = {
            **self._config,
            "server-round": round_number,
            "train-factors": "".join(factor for factor in FACTORS if factor in trained),
            "proximal-mu": proximal,
        }
        return self._result(self._borrowed.call(config, start), start, trained)

    def _result(self, reply: Message, start: Factors, trained: Sequence[Factor]) -> _Result:
        arrays, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
        if len(arrays) != 1 or len(metrics) != 1 or "num-examples" not in metrics[0]:
            raise FederationError(
                f"the train function's reply has {len(arrays)} ArrayRecords and {len(metrics)} MetricRecords; expected "
                "one of each, with num-examples"
            )
        tensors = {name: array.to(torch.float32) for name, array in arrays[0].to_torch_state_dict().items()}
        expected = adapter_tensors(start)
        wrong = [
            name
            for name in {**expected, **tensors}
            if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
        ]
        if wrong:
            raise FederationError(f"the train function's arrays differ from the adapter's in name or shape: {wrong[0]}")
        found = factors_of_adapter(tensors)
        factors = {name: found[name] for name in start}
        for name, pair in factors.items():
            for factor in FACTORS:
                if factor not in trained and not torch.equal(getattr(pair, factor), getattr(start[name], factor)):
                    raise FederationError(
                        f"the method trains only factor {'and '.join(trained)}, but factor {factor} of {name} has "
                        "changed; freeze it (train-factors in the message's config)"
                    )
        metric: MetricRecord = metrics[0]
        self.count = int(metric["num-examples"])  # type: ignore[arg-type]
        loss = metric.get("train_loss", metric.get("loss", 0.0))
        return _Result(factors, float(loss) if isinstance(loss, int | float) else 0.0)

"""For Flower projects that have their own ClientApp: a mod that puts FedSRD between their training and the netjob.

    app = ClientApp(mods=[fedsrd_mod])

The train function stays as it is: it gets all of the adapter's arrays and gives them back trained. What travels is the
sparse update of the method that the server's `FedSRD` strategy names. What the client keeps between rounds (its replica
of the global adapter, and a method's error feedback) lies on the site's disk (`remote.replica`), not in Flower's
Context, which a new SuperNode does not have; if it is lost, the server sends the whole adapter again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, Context, Message, MessageType, RecordDict
from pydantic import ValidationError

from fedsrd.core import lora
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import FACTORS
from fedsrd.core.tensors import Tensors, TensorTable
from fedsrd.errors import FederationError, PrivacyError
from fedsrd.explain import in_words
from fedsrd.federation.client import Client, Trainer
from fedsrd.federation.messages import Claims
from fedsrd.federation.remote.gate import Metrics
from fedsrd.federation.remote.header import Job
from fedsrd.federation.remote.replica import Replica
from fedsrd.federation.remote.site import Site
from fedsrd.federation.setup import method_of
from fedsrd.flower.arrays import not_float32
from fedsrd.flower.records import HEADER, respond
from fedsrd.methods import capabilities
from fedsrd.training.models import adapter_tensors, tensors_of_adapter

LARGEST = 1 << 31
"""Most adapter parameters that a server may name; a client's own code knows its model, this mod does not."""

Train = Callable[[Message, Context], Message]


def fedsrd_mod(message: Message, context: Context, call_next: Train) -> Message:
    """A Flower mod (`flwr.clientapp.typing.Mod`).

    The train function's message holds `arrays`, the adapter under the names of PEFT's state dict (float32), and
    `config` (or what the strategy's `arrayrecord_key` and `configrecord_key` say) with the strategy's train config, the
    round (`server-round`), the factors that the method trains (`train-factors`: "BA", "B" or "A") and `proximal-mu`.
    Its reply must hold one ArrayRecord with the same names, and one MetricRecord with `num-examples` (or the strategy's
    `weighted_by_key`); the other metrics travel beside the update. An evaluate function gets `arrays`, the evaluate
    config and the round, and replies with one MetricRecord with `num-examples`.
    Messages that are not for training pass, where they are not the strategy's. Node config as for our own client
    (`site`): `client`, `state`.

    Raises:
        FederationError: the train function's reply is not that, or the server asks for training without the strategy;
            the server is told, and goes on without this client.
    """
    if HEADER not in message.content.config_records:
        if message.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
            # Passed on, the whole adapter would leave, past the site's rules and log.
            raise FederationError(
                "this ClientApp has fedsrd_mod, and the server's message is not from a FedSRD strategy; expected "
                "strategy = FedSRD() in the ServerApp, or a ClientApp without fedsrd_mod"
            )
        return call_next(message, context)
    return respond(message, context, _Borrowed(message, context, call_next))


@dataclass(frozen=True)
class _Borrowed:
    """`respond.ClientRuntime` of a client whose own code trains."""

    strict = False
    knows_model = False

    message: Message
    context: Context
    call_next: Train

    def table(self, job: Job) -> TensorTable:
        # A change of the frozen weights would take as much memory as the server's shapes say.
        capabilities.check(method_of(job.method), capabilities.STRATEGY)
        table = job.table()
        if not table.specs or table.elements > LARGEST:
            raise FederationError(
                f"the server names {len(table.specs)} tensors with {table.elements} parameters; expected 1 to "
                f"{LARGEST} parameters (is the server's app FedSRD's own, not a FedSRD strategy?)"
            )
        return table

    def trainer(self, job: Job, site: Site) -> Trainer:
        if site.privacy is not None:
            raise PrivacyError(
                "this site's rules ask for differential privacy of examples, and the project's own code trains here: "
                "nobody can say what that gives away; expected FedSRD's own app"
            )
        return _Trainer(self, job)

    def evaluate(self, client: Client, job: Job, round_number: int) -> Metrics:
        model = method_of(job.method).model(client.state, {})
        reply = self.call(job, {**job.evaluate_config, "server-round": round_number}, model)
        metrics, weight = list(reply.content.metric_records.values()), job.records.weight
        if len(metrics) != 1 or weight not in metrics[0]:
            raise FederationError(
                f"the evaluate function's reply has {len(metrics)} MetricRecords; expected one, with {weight}"
            )
        # Under one name between sites, whose rules may keep it back.
        rest = {key: value for key, value in metrics[0].items() if key != weight}
        return {**rest, "num-examples": metrics[0][weight]}

    def call(self, job: Job, config: dict[str, ConfigRecordValues], tensors: Tensors) -> Message:
        """The reply of the project's own function for these tensors."""
        arrays = ArrayRecord({name: tensor.clone() for name, tensor in adapter_tensors(tensors).items()})
        task, sent = self.message, self.message.content
        task.content = RecordDict({job.records.arrays: arrays, job.records.config: ConfigRecord(config)})
        try:
            reply = self.call_next(task, self.context)
        finally:
            task.content = sent
        if reply.has_error():
            raise FederationError(f"the client's own function failed: {reply.error.reason}")
        return reply

    def finish(self, client: Client, job: Job, site: Site, replica: Replica) -> None:
        if site.simulated:
            replica.remove()


@dataclass(frozen=True, slots=True)
class _Result:
    tensors: Tensors
    loss: float | None
    metrics: Metrics


class _Trainer:
    """A project's train function as the federation sees training."""

    def __init__(self, borrowed: _Borrowed, job: Job) -> None:
        self._borrowed = borrowed
        self._job = job
        self.count = 0

    def train(self, plan: LocalPlan, round_number: int, on_step: Callable[[int, float], None]) -> _Result:
        factors = {lora.split(name)[1] for name in plan.trained}
        config: dict[str, ConfigRecordValues] = {
            **self._job.train_config,
            "server-round": round_number,
            "train-factors": "".join(factor for factor in FACTORS if factor in factors),
            "proximal-mu": plan.proximal,
        }
        return self._result(self._borrowed.call(self._job, config, plan.start), plan)

    def _result(self, reply: Message, plan: LocalPlan) -> _Result:
        arrays, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
        weight = self._job.records.weight
        if len(arrays) != 1 or len(metrics) != 1 or weight not in metrics[0]:
            raise FederationError(
                f"the train function's reply has {len(arrays)} ArrayRecords and {len(metrics)} MetricRecords; expected "
                f"one of each, with {weight}"
            )
        tensors = dict(arrays[0].to_torch_state_dict())
        _check_same(tensors, adapter_tensors(plan.start))
        found = tensors_of_adapter(tensors)
        for name, before in plan.start.items():
            if name not in plan.trained and not torch.equal(found[name], before):
                raise FederationError(
                    f"the method does not train {name}, but it has changed; freeze it (train-factors in the message's "
                    "config)"
                )
        loss = metrics[0].get("train_loss", metrics[0].get("loss"))
        try:
            said = Claims.model_validate({"examples": metrics[0][weight], "loss": loss})
        except ValidationError as error:
            problem = in_words(dict(error.errors()[0]))
            raise FederationError(f"the train function's {weight} = {metrics[0][weight]!r:.40}: {problem}") from None
        self.count = said.examples or 0
        return _Result(found, said.loss, {key: value for key, value in metrics[0].items() if key != weight})


def _check_same(found: Tensors, expected: Tensors) -> None:
    """Refuses arrays of a train function that are not the server's adapter, trained. Raises FederationError."""
    where = "the train function's arrays"
    same = "; expected one model and one LoraConfig (r, target_modules) in the ClientApp and the ServerApp"
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if unknown or missing:
        has = [f"have {unknown[0]!r}, which the server's adapter lacks"] if unknown else []
        lacks = [f"lack {missing[0]!r}"] if missing else []
        more = len(unknown) + len(missing) - len(has) - len(lacks)
        raise FederationError(
            f"{where} differ from the adapter's in name: they {', and '.join(has + lacks)}"
            f"{f' ({more} more names differ)' if more else ''}{same}"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise FederationError(
                f"{where} differ from the adapter's in shape: {name!r} is {tuple(tensor.shape)}, "
                f"{tuple(expected[name].shape)} at the server{same}"
            )
        if wrong := not_float32(tensor):
            raise FederationError(f"{where}: {name!r} {wrong}")

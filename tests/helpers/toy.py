"""A federation of real servers, clients and payloads whose training is a seeded random step."""

from dataclasses import dataclass

import numpy as np
import torch

from fedsrd import methods, wire
from fedsrd.core import lora
from fedsrd.core.lora import LoraModule, LoraPair, table_of
from fedsrd.federation.client import Client
from fedsrd.federation.messages import Failure, Held
from fedsrd.federation.server import Server
from fedsrd.federation.setup import optimizer_of
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import ServerOptimizerOptions

TABLE = table_of((LoraModule("l0.q", 24, 16, 4), LoraModule("l0.v", 6, 16, 4), LoraModule("l1.q", 16, 24, 4)))


def build(name, **options):
    kind = methods.get(name)
    return kind(kind.Options(**options))


def config_of(method, table=TABLE, seed=0, up=None, down=None, optimizer=None):
    """What server and clients share; `optimizer` is a [server_optimizer] table."""
    chosen = None if optimizer is None else ServerOptimizerOptions(**optimizer)
    options = wire.WireOptions()
    return FederationConfig(method, table, seed, up or options, down or up or options, optimizer_of(method, chosen))


def moved(start, trained, random, size=0.05):
    """The tensors after a random step of those that train; components that are zero in both B and A stay zero."""
    noise = {
        name: torch.as_tensor(random.standard_normal(tensor.shape) * size).float() for name, tensor in start.items()
    }
    for module, pair in lora.pairs_of(start).items():
        alive = (pair.B.abs().sum(0) + pair.A.abs().sum(1)) > 0
        own = LoraPair(*(noise[lora.tensor_name(module, factor)] for factor in lora.FACTORS))
        noise |= lora.tensors_of({module: LoraPair(own.B * alive, own.A * alive[:, None])})
    return {name: tensor + noise[name] * (name in trained) for name, tensor in start.items()}


@dataclass
class Result:
    tensors: dict
    loss: float = 1.0


class ToyTrainer:
    """Trains by a step that follows from `key` and the round; notes what it was given."""

    count = 8

    def __init__(self, key, spoil=()):
        self.key = key
        self.spoil = spoil
        self.seen = []

    def train(self, plan, round_number, on_step):
        self.seen.append(plan)
        after = moved(plan.start, plan.trained, np.random.default_rng([self.key, round_number]))
        if plan.gradient_hook is not None:
            for step in range(2):
                noise = np.random.default_rng([self.key, round_number, step])
                plan.gradient_hook(
                    {name: torch.as_tensor(noise.standard_normal(after[name].shape)).float() for name in plan.trained}
                )
        if round_number in self.spoil:
            next(iter(after.values())).view(-1)[0] = float("nan")
        self.last = after
        return Result(after)


class Federation:
    """Server and clients of one method."""

    def __init__(
        self, method, keys=(1, 2), seed=0, coding=None, ranks=None, spoil=None, table=TABLE, optimizer=None, **server
    ):
        names = [f"c{place}" for place in range(len(keys))]
        ranks = dict.fromkeys(names) | (ranks or {})
        self.method = method
        self.config = config_of(method, table, seed, coding, optimizer=optimizer)
        self.server = Server(self.config, ranks=ranks, **server)
        self.trainers = {
            name: ToyTrainer(key, (spoil or {}).get(name, ())) for name, key in zip(names, keys, strict=True)
        }
        self.clients = [Client(name, self.config, trainer, ranks[name]) for name, trainer in self.trainers.items()]
        for client in self.clients:
            client.start(self.server.start())
            self.delivered(client.name)

    def delivered(self, name):
        """The client holds the newest version."""
        self.server.note(Held(name, self.server.version, self.server.digest))

    def round(self, present=None):
        """One round of the clients whose numbers are given, or of all; gives it closed, with their replicas checked."""
        clients = self.clients if present is None else [self.clients[number] for number in present]
        self.sent = {client.name: self.server.task(client.name) for client in clients}
        self.answers = [client.answer(self.sent[client.name], lambda *_: None) for client in clients]
        for answer in self.answers:
            if isinstance(answer, Failure) and answer.lost:
                self.server.forget(answer.client)
        closed = self.server.close_round(self.answers)
        accepted = {update.client for update in closed.accepted}
        for client in clients:
            if client.version == self.server.version - 1:
                assert client.apply(closed.broadcast, counted=client.name in accepted) == self.server.digest
                self.delivered(client.name)
        return closed

    def rounds(self, count):
        """Several rounds; gives itself."""
        for _ in range(count):
            self.round()
        return self

    def failures(self):
        return [answer for answer in self.answers if isinstance(answer, Failure)]

    def weights(self):
        """What the model computes with: base + B A by module, of the global model, or of the first client's own."""
        tensors = self.clients[0].model(self.server.state) if self.method.personal else self.server.model()
        return product(tensors, self.server.state.base_delta)


def product(tensors, base=None):
    """base + B A by module, float64."""
    found = {name: pair.B.double() @ pair.A.double() for name, pair in lora.pairs_of(tensors).items()}
    for name, tensor in (base or {}).items():
        found[name] = found[name] + tensor.double()
    return found


def apart(one, other):
    """Largest difference of two products."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)

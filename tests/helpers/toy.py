"""A federation of real servers, clients and payloads whose training is a seeded random step."""

from dataclasses import dataclass

import numpy as np
import torch

from fedsrd import methods, wire
from fedsrd.core.factors import LoraPair, ModuleShape, ShapeTable
from fedsrd.federation.client import Client
from fedsrd.federation.messages import Failure
from fedsrd.federation.server import Server

TABLE = ShapeTable((ModuleShape("l0.q", 24, 16, 4), ModuleShape("l0.v", 6, 16, 4), ModuleShape("l1.q", 16, 24, 4)))


def build(name, **options):
    kind = methods.get(name)
    return kind(kind.Options(**options))


def moved(start, trained, random, size=0.05):
    """The factors after a random step of those that train; components that are zero on both sides stay zero."""
    after = {}
    for name, pair in start.items():
        noise = [torch.from_numpy(random.standard_normal(t.shape) * size).float() for t in pair]
        alive = (pair.B.abs().sum(0) + pair.A.abs().sum(1)) > 0
        noise = [noise[0] * alive, noise[1] * alive[:, None]]
        after[name] = LoraPair(*(t + n * (f in trained) for f, t, n in zip("BA", pair, noise, strict=True)))
    return after


@dataclass
class Result:
    factors: dict
    loss: float = 1.0


class ToyTrainer:
    """Trains by a step that follows from `key` and the round; notes what it was given."""

    count = 8

    def __init__(self, key, spoil=()):
        self.key = key
        self.spoil = spoil
        self.seen = []

    def train(self, start, round_number, trained, on_step, *, base, proximal):
        self.seen.append((start, base, proximal))
        after = moved(start, trained, np.random.default_rng([self.key, round_number]))
        if round_number in self.spoil:
            first = next(iter(after))
            after[first].B[0, 0] = float("nan")
        self.last = after
        return Result(after)


class Federation:
    """Server and clients of one method."""

    def __init__(self, method, keys=(1, 2), seed=0, coding=None, ranks=None, spoil=None, **server):
        ranks = ranks or {}
        self.method = method
        names = [f"c{place}" for place in range(len(keys))]
        self.server = Server(TABLE, method, "uniform", seed, coding, ranks, **server)
        self.trainers = {
            name: ToyTrainer(key, (spoil or {}).get(name, ())) for name, key in zip(names, keys, strict=True)
        }
        self.clients = [
            Client(name, TABLE, method, trainer, seed, coding or wire.Coding(), ranks.get(name))
            for name, trainer in self.trainers.items()
        ]
        for client in self.clients:
            client.start(self.server.start())
            self.server.delivered(client.name)

    def round(self, present=None):
        """One round of the clients whose numbers are given, or of all; gives it closed, with their replicas checked."""
        clients = self.clients if present is None else [self.clients[number] for number in present]
        self.sent = {client.name: self.server.task(client.name) for client in clients}
        self.answers = [client.answer(self.sent[client.name], lambda *_: None) for client in clients]
        for answer in self.answers:
            if isinstance(answer, Failure) and answer.lost:
                self.server.forget(answer.client)
        closed = self.server.close_round(self.answers)
        for client in clients:
            if client.version == self.server.version - 1:
                assert client.apply(closed.broadcast) == self.server.digest
                self.server.delivered(client.name)
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
        factors = self.clients[0].model(self.server.factors) if self.method.personal else self.server.model()
        return product(factors, self.server.base)


def product(factors, base=None):
    """base + B A by module, float64."""
    found = {name: pair.B.double() @ pair.A.double() for name, pair in factors.items()}
    for name, tensor in (base or {}).items():
        found[name] = found[name] + tensor.double()
    return found


def apart(one, other):
    """Largest difference of two products."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)

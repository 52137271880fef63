"""A whole session of secure aggregation, with drop-outs, signatures and restarts wherever a test wants them."""

import hashlib

import numpy as np

from fedsrd.privacy.packed import Layout, pack, to_bytes
from fedsrd.privacy.secure import Client, Confirmation, Inbox, Keys, Reveal, Server, Session, Shares


def session_of(clients, threshold, bits=4, count=50, number=1, nonce="0" * 32):
    names = tuple(f"site {i}" for i in range(clients))
    return Session(
        federation="run", round=number, nonce=nonce, clients=names, threshold=threshold, layout=Layout(bits, count)
    )


def signer(name):
    """Stands for a signature: what only this name would say of these bytes."""
    return lambda said: hashlib.sha256(name.encode() + b"\0" + said).hexdigest()


def verify(name, signature, said):
    return signature == signer(name)(said)


class Run:
    """One session, step by step; messages travel as bytes.

    Args:
        session: its parameters.
        signed: with signatures and confirmations.
        restarts: every party is written down and read back before every step.
    """

    def __init__(self, session, signed=True, restarts=False):
        self.session, self.signed, self.restarts = session, signed, restarts
        self.server = Server(session, verify if signed else None)
        self.clients, self.sent = {}, {}
        self.verify = verify if signed else None

    def restart(self):
        if self.restarts:
            self.server = Server.from_bytes(self.server.to_bytes(), self.verify)
            self.clients = {name: Client.from_bytes(client.to_bytes()) for name, client in self.clients.items()}

    def started(self, names=None):
        answers = {}
        for name in self.session.clients if names is None else names:
            self.clients[name], keys = Client.start(self.session, name, signer(name) if self.signed else None)
            answers[name] = Keys.read(keys.write())
        return answers

    def keys(self, names=None):
        self.roster = self.server.keys(self.started(names))
        self.restart()
        return self.roster

    def shared(self, names):
        return {name: Shares.read(self.clients[name].share(self.roster, self.verify).write()) for name in names}

    def shares(self, names=None):
        names = [keys.name for keys in self.roster] if names is None else names
        self.inboxes = self.server.shares(self.shared(names))
        self.restart()
        return self.inboxes

    def masked(self, values):
        """Values by name; those not named drop."""
        for name, value in values.items():
            words = pack(value, self.session.layout)
            self.clients[name].mask(Inbox.read(self.inboxes[name].write()), words)
            self.restart()
            assert self.server.masked(name, to_bytes(words)), self.server.refused
            self.sent[name] = words
        self.survivors = self.server.survivors()
        self.restart()
        return self.survivors

    def confirmed(self, names=None):
        said = {
            name: Confirmation.read(self.clients[name].confirm(self.survivors, signer(name)).write())
            for name in (self.survivors if names is None else names)
        }
        self.confirmations = self.server.confirmations(said)
        self.restart()
        return self.confirmations

    def answers(self, names=None):
        confirmations = self.confirmations if self.signed else ()
        return {
            name: Reveal.read(self.clients[name].reveal(self.survivors, confirmations, self.verify).write())
            for name in (self.survivors if names is None else names)
        }

    def revealed(self, names=None):
        self.server.reveal(self.answers(names))
        self.restart()
        return self.server.total()


def ready(clients=4, threshold=3, dropped=1, signed=True, **options):
    """A run up to the masked inputs, all values 1, the last `dropped` clients gone after their shares."""
    run = Run(session_of(clients, threshold, **options), signed)
    run.keys()
    run.shares()
    ones = np.ones(run.session.layout.count, np.int64)
    run.masked(dict.fromkeys(run.session.clients[: clients - dropped], ones))
    return run


def keyed(**options):
    """A run whose roster is there, and nothing more."""
    run = Run(session_of(4, 3, **options))
    run.keys()
    return run


def forged(keys, **changes):
    """Keys that the same site has signed, in the same session, with something else in them."""
    changed = keys.model_copy(update=changes)
    said = changed.said(session_of(4, 3).digest())
    return changed.model_copy(update={"signature": signer(keys.name)(said)})

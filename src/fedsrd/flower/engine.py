"""Flower as the carrier of a federation's bytes: who is there, what was asked, what came back, and who is silent."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Broadcast, Failure, Held, Sync, TrainTask, Update
from fedsrd.federation.remote import header, identity
from fedsrd.federation.secure_messages import Phase
from fedsrd.federation.server import Server
from fedsrd.flower.records import Metric, content_of, envelope_of, is_ours, metrics_beside, metrics_of, reason_of
from fedsrd.flower.watch import Watch

Evaluated = tuple[int, dict[str, Metric]]
"""A client's number of examples, and its metrics."""
HELLO_SECONDS = 60.0
"""How long the first answer of a new node is waited for."""
SLOWEST_PAUSE = 1.0
THEIR_OWN = (1, 2)
"""Flower's error codes of a client app that raised, or could not be loaded; the others are of nodes and messages."""


@dataclass(frozen=True, slots=True)
class Node:
    """A SuperNode that has said who it is."""

    id: int
    name: str


class FlowerEngine:
    """Carries a server's messages over a Flower grid.

    Args:
        grid: Flower's.
        server: whose clients these are.
        federation: the name by which clients tell this run from others; 16 hex digits.
        job: what the client of that name must know of the recipe.
        deadline: seconds that a round waits for answers, and a server for its clients.
        minimum: the fewest clients to wait for.
        watch: who is told.
        keys: the public keys of clients by name (`recipe.ClientSection`). Such a name is taken only by a node that
            proves that it holds the other half, and then from any other node; where all of the server's roster have
            keys, nobody else joins.
        stranger: what to say of a node whose answer to a greeting is none of FedSRD's.
    """

    def __init__(
        self,
        grid: Grid,
        server: Server,
        federation: str,
        job: Callable[[str], header.Job],
        *,
        deadline: float,
        minimum: int,
        watch: Watch,
        keys: Mapping[str, str] | None = None,
        stranger: str = "",
    ) -> None:
        self._grid = grid
        self._server = server
        self._federation = federation
        self._job = job
        self._deadline = deadline
        self._minimum = minimum
        self._watch = watch
        self._keys = dict(keys or {})
        self._stranger = stranger
        self._closed = bool(self._keys) and set(server.roster) <= self._keys.keys()
        self._nodes: dict[int, Node] = {}
        self._hailed: set[int] = set()
        self._refused: dict[int, str] = {}
        self._replaced: dict[int, set[int]] = {}
        self._reports: list[Held] = []

    def names(self, *, wait: bool = True) -> list[str]:
        """The clients within reach, in the recipe's order. Waits until there are enough, at most for the deadline."""
        ends = time.monotonic() + (self._deadline if wait else 0.0)
        pause, again = 0.05, True
        while True:
            found = self.look(min(HELLO_SECONDS, max(ends - time.monotonic(), 1.0)), again=again)
            if len(found) >= self._minimum or time.monotonic() >= ends:
                return found
            time.sleep(pause)
            pause, again = min(pause * 1.5, SLOWEST_PAUSE), False

    def look(self, patience: float, *, again: bool) -> list[str]:
        """The clients within reach now, in the recipe's order: nodes that are new are greeted.

        Args:
            patience: seconds that an answer to that is waited for.
            again: whether who was refused is greeted, too: the name may be free now, or the site may have mended its
                key or its data.
        """
        if again:
            self._hailed -= self._refused.keys()
        online = set(self._grid.get_node_ids())
        for gone in self._nodes.keys() - online:
            self._watch.event("left", client=self._nodes.pop(gone).name)
            # Whom it kept out, or took the name from, may have it now.
            self._hailed -= self._refused.keys() | self._replaced.pop(gone, set())
        self._hailed &= online
        self._hail(sorted(online - self._hailed), patience)
        return self._server.in_order(node.name for node in self._nodes.values())

    @property
    def open(self) -> bool:
        """Whether nobody needs a key: who is turned away then is no stranger."""
        return not self._keys

    def turned_away(self) -> list[str]:
        """Why nodes that are there do not take part; empty where one of them has not answered yet."""
        online = set(self._grid.get_node_ids())
        if online - self._hailed:
            return []
        return [f"node {id}: {reason}" for id, reason in self._refused.items() if id in online]

    def ask(self, tasks: Mapping[str, TrainTask]) -> Iterator[Update | Failure]:
        """Sends the tasks and gives the answers as they come; who is silent at the deadline is a Failure."""

        def contents() -> Iterator[tuple[int, RecordDict]]:
            for name, task in tasks.items():
                self._watch.event("asked", client=name, round=task.round, bytes=task.sync.size)
                yield self._id(name), self._content(name, task)

        began = time.monotonic()
        for id, reply in self._exchange(contents(), self._deadline):
            name = self._nodes[id].name
            task = tasks[name]
            answer = self.read(name, task.round, reply)
            took = round(time.monotonic() - began, 3)
            if isinstance(answer, Update):
                self._watch.event(
                    "answered", client=name, round=task.round, bytes=len(answer.payload), seconds=took, loss=answer.loss
                )
            else:
                kind = "silent" if reply is None else "failed"
                self._watch.event(kind, client=name, round=task.round, reason=answer.reason, seconds=took)
            yield answer

    def message(self, name: str, task: TrainTask) -> Message:
        """A task as a message, for loops that send it themselves."""
        return Message(self._content(name, task), self._id(name), "train", ttl=self._deadline)

    def _content(self, name: str, task: TrainTask) -> RecordDict:
        about, payload = self._order(name, task.sync)
        terms = None if task.sum is None else header.SumTerms(clients=task.sum.clients, steps=list(task.sum.steps))
        order = header.Train(
            **about, round=task.round, version=task.version, digest=task.digest, sum=terms, inbox=len(task.inbox)
        )
        return content_of(header.pack(order, task.inbox + payload))

    def question(
        self, round_number: int, phase: Phase, bodies: Mapping[str, bytes]
    ) -> Iterator[tuple[str, bytes] | Failure]:
        """Asks clients for their part of a phase of secure aggregation; who has gone, or is silent, is a Failure."""

        def contents() -> Iterator[tuple[int, RecordDict]]:
            for name in there:
                asked = header.Secure(federation=self._federation, name=name, round=round_number, phase=phase)
                yield self._id(name), content_of(header.pack(asked, bodies[name]))

        there = [name for name in bodies if any(node.name == name for node in self._nodes.values())]
        for name in bodies.keys() - set(there):
            yield Failure(name, round_number, f"has gone before its part of secure aggregation ({phase})")
        names = {self._id(name): name for name in there}
        began = time.monotonic()
        for id, reply in self._exchange(contents(), self._deadline):
            found = self._part(names[id], round_number, phase, reply)
            if isinstance(found, Failure):
                took = round(time.monotonic() - began, 3)
                event = "silent" if reply is None else "failed"
                self._watch.event(event, client=names[id], round=round_number, reason=found.reason, seconds=took)
            yield found

    def _part(self, name: str, round_number: int, phase: Phase, reply: Message | None) -> tuple[str, bytes] | Failure:
        if reply is None:
            return Failure(name, round_number, f"no answer within {self._deadline:g} s ({phase})")
        if reply.has_error():
            return Failure(name, round_number, reason_of(reply))
        try:
            said, answer = header.unpack(envelope_of(reply.content), header.SecureReply)
        except PayloadError as error:
            return Failure(name, round_number, str(error))
        if (said.name, said.round, said.phase) != (name, round_number, phase):
            return Failure(name, round_number, f"an answer of {said.name} to {said.phase} of round {said.round}")
        return (name, answer) if said.failure is None else Failure(name, round_number, said.failure)

    def _order(self, name: str, sync: Sync) -> tuple[dict[str, Any], bytes]:
        """What every order to a client says."""
        about, payload = header.header_of_sync(sync)
        reset = self._server.lost(name)
        order = {"federation": self._federation, "name": name, "reset": reset, "job": self._job(name), "sync": about}
        return order, payload

    def read(self, name: str, round_number: int, reply: Message | None) -> Update | Failure:
        """A reply to a task as what it says; None: there was none."""
        if reply is None:
            return Failure(name, round_number, f"no answer within {self._deadline:g} s")
        if reply.has_error():
            return Failure(name, round_number, reason_of(reply))
        try:
            said, payload = header.unpack(envelope_of(reply.content), header.TrainReply)
        except PayloadError as error:
            return Failure(name, round_number, str(error))
        if said.name != name or said.round != round_number:
            return Failure(name, round_number, f"an answer of {said.name} to round {said.round}")
        self._reports.append(Held(name, said.held))
        if said.failure is not None:
            return Failure(name, round_number, said.failure, said.lost)
        return Update(
            name,
            said.round,
            said.examples,
            payload,
            said.loss,
            said.seconds.told(),
            said.epsilon,
            said.delta,
            metrics_beside(reply.content),
        )

    def reports(self) -> list[Held]:
        """What clients have said that they hold since this was last asked."""
        found, self._reports = self._reports, []
        return found

    def deliver(self, broadcast: Broadcast, counted: Mapping[str, bool]) -> dict[str, str]:
        """Nobody at once: it travels with the next message to each client."""
        return {}

    def finalize(self, messages: Mapping[str, Sync]) -> dict[str, str]:
        """Brings clients to the newest version; who is silent stays behind, and is told of."""

        def contents() -> Iterator[tuple[int, RecordDict]]:
            for name, sync in messages.items():
                about, payload = self._order(name, sync)
                yield self._id(name), content_of(header.pack(header.Finalize(**about), payload))

        found = {}
        for id, reply in self._exchange(contents(), self._deadline):
            name = self._nodes[id].name
            if reply is None or reply.has_error():
                reason = "no answer" if reply is None else reason_of(reply)
                self._watch.event("failed", client=name, reason=f"not at the last version: {reason}")
                continue
            try:
                said, _ = header.unpack(envelope_of(reply.content), header.SyncReply)
            except PayloadError as error:
                self._watch.event("failed", client=name, reason=str(error))
                continue
            found[name] = said.digest
            self._watch.event(
                "settled", client=name, bytes=messages[name].size, digest=said.digest, reason=said.failure
            )
        return found

    def evaluate(self, names: Sequence[str], round_number: int) -> list[Evaluated]:
        """Has clients evaluate the newest version on their own data; the examples and metrics of those who did."""
        contents = ((self._id(name), self._evaluation(name, round_number)) for name in names)
        replies = {self._nodes[id].name: reply for id, reply in self._exchange(contents, self._deadline, "evaluate")}
        # A sum depends on its order: that of the names, never that of arrival.
        found = [self.read_evaluation(name, replies.get(name)) for name in names]
        return [one for one in found if one is not None]

    def evaluation(self, name: str, round_number: int) -> Message:
        """What `evaluate` sends to a client, for loops that send it themselves."""
        return Message(self._evaluation(name, round_number), self._id(name), "evaluate", ttl=self._deadline)

    def _evaluation(self, name: str, round_number: int) -> RecordDict:
        about, payload = self._order(name, self._server.sync(name))
        return content_of(header.pack(header.Evaluate(**about, round=round_number), payload))

    def read_evaluation(self, name: str, reply: Message | None) -> Evaluated | None:
        """What a client's evaluation found; None, and the watch is told, where it found nothing."""
        try:
            if reply is None or reply.has_error():
                raise PayloadError("no answer" if reply is None else reason_of(reply))
            said, _ = header.unpack(envelope_of(reply.content), header.SyncReply)
            self._reports.append(Held(name, self._server.version, said.digest))
            if said.failure is not None:
                raise PayloadError(said.failure)
            return metrics_of(reply.content)
        except PayloadError as error:
            self._watch.event("failed", client=name, reason=f"no evaluation: {error}")
            return None

    def _hail(self, ids: Sequence[int], patience: float) -> None:
        if not ids:
            return
        nonces = {id: secrets.token_hex(16) for id in ids}
        hellos = (
            (id, header.Hello(federation=self._federation, names=self._server.roster, node=id, nonce=nonce))
            for id, nonce in nonces.items()
        )
        for id, reply in self._exchange(((id, content_of(header.pack(hello))) for id, hello in hellos), patience):
            if reply is None or (reply.has_error() and reply.error.code not in THEIR_OWN):
                continue  # it may be on its way, or was killed in between; asked again next time
            self._hailed.add(id)
            try:
                if reply.has_error():
                    raise PayloadError(reason_of(reply))
                present, _ = header.unpack(envelope_of(reply.content), header.HelloReply)
            except PayloadError as error:
                self._refuse(id, f"{error}{'' if is_ours(reply) else self._stranger}")
                continue
            reason = self._refusal(id, present, nonces[id])
            if reason is not None:
                self._refuse(id, reason, client=present.name)
                continue
            self._refused.pop(id, None)
            for other in [node.id for node in self._nodes.values() if node.name == present.name]:
                # The same key: the site's SuperNode was started again, and the carrier calls it something else now.
                del self._nodes[other]
                self._replaced.setdefault(id, set()).add(other)
                self._watch.event("moved", client=present.name, node=id)
            self._nodes[id] = Node(id, present.name)
            held = Held(present.name, present.held, present.digest)
            self._reports.append(held)
            self._watch.event("joined", client=present.name, held=present.held, resync=self._server.differs(held))

    def _refuse(self, id: int, reason: str, **about: str) -> None:
        """Tells of a node that does not take part; once, however often it is asked."""
        if self._refused.get(id) != reason:
            self._watch.event("refused", node=id, reason=reason, **about)
        self._refused[id] = reason

    def _refusal(self, id: int, present: header.HelloReply, nonce: str) -> str | None:
        """Why this node cannot have the name that it asks for; None where it can."""
        name, key = present.name, self._keys.get(present.name)
        if key is None:
            if self._closed:
                return f"{name} is not in the recipe, whose clients all have keys"
            if any(node.name == name for node in self._nodes.values()):
                return (
                    f"another SuperNode is called {name} too, and no key in the recipe tells which is right; give each "
                    "its own client name"
                )
            return None
        if not present.signature:
            return (
                f"the recipe has a key for {name}, and this SuperNode proves none; start it with "
                "--node-config 'key=\"FILE\"'"
            )
        said = identity.statement(self._federation, nonce, id, name, present.held, present.digest)
        if not identity.is_signed(key, present.signature, said):
            own = "; its signature is not of this greeting" if present.key == key else f", it shows {present.key}"
            return f"this SuperNode does not hold the key of {name} in the recipe, {key}{own}"
        return None

    def _id(self, name: str) -> int:
        return next(node.id for node in self._nodes.values() if node.name == name)

    def _exchange(
        self, contents: Iterable[tuple[int, RecordDict]], deadline: float, kind: str = "train"
    ) -> Iterator[tuple[int, Message | None]]:
        """Sends one message to each node; gives the replies as they come, and None for each that came to nothing.

        A reply belongs to the message that it answers, and comes from whom that was for; a failure may be told by
        another node, which is Flower's own. Messages live as long as the deadline, so that a late answer is nobody's.
        """
        waiting: dict[str, int] = {}
        # One at a time, and let go of: no more than one client's bytes are held here.
        for id, content in contents:
            message = Message(content, id, kind, ttl=deadline)
            pushed = list(self._grid.push_messages([message]))
            if pushed and pushed[0]:
                waiting[pushed[0]] = id
            else:
                yield id, None
        ends = time.monotonic() + deadline
        pause = 0.05
        while waiting:
            replies = list(self._grid.pull_messages(list(waiting)))
            for reply in replies:
                id = waiting.get(reply.metadata.reply_to_message_id, -1)
                if id < 0:
                    continue
                if reply.metadata.src_node_id != id and not reply.has_error():
                    reason = f"it answered what node {id} was asked"
                    self._watch.event("refused", node=reply.metadata.src_node_id, reason=reason)
                    continue
                del waiting[reply.metadata.reply_to_message_id]
                yield id, reply
            if not waiting or time.monotonic() >= ends:
                break
            if not replies:
                time.sleep(min(pause, max(ends - time.monotonic(), 0.0)))
                pause = min(pause * 1.5, SLOWEST_PAUSE)
        for id in waiting.values():
            yield id, None

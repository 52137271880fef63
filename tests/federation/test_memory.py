"""What a method keeps at a client counts only when its update did: in one process, and under Flower's in-process grid.

The method is one with error feedback at both ends (`feedback`): whatever happens to updates, rounds, clients and the
server, nothing may be lost and nothing counted twice. For each client, what the server decoded of its counted updates
and what the client still keeps add up to all its counted changes; for the server, what clients decoded of its
broadcasts and what it still keeps add up to all its aggregates.
"""

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch
from feedback import RESIDUAL, Feedback, registered
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ToyTrainer, build, config_of

from fedsrd import wire
from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import digest
from fedsrd.errors import FederationError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import NOTHING, Client, ClientMemory
from fedsrd.federation.local import LocalEngine
from fedsrd.federation.messages import Failure, Update
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.server import Server
from fedsrd.recipe import ParticipationSection

TABLE = table_of((LoraModule("l0.q", 12, 8, 2), LoraModule("l1.q", 6, 8, 2)))
NAMES = ("c0", "c1", "c2", "c3")
TYPES = ("float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary")
FEDERATION = "0" * 16


@pytest.fixture(autouse=True, scope="module")
def known():
    with registered():
        yield


# Clients whose answers go wrong.


class Trainer(ToyTrainer):
    """Its step may be a thousand times too large, which the norm bound turns away."""

    times = 1.0

    def train(self, plan, round_number, on_step):
        found = super().train(plan, round_number, on_step)
        self.last = {
            name: plan.start[name] + self.times * (tensor - plan.start[name]) for name, tensor in self.last.items()
        }
        self.change = {name: tensor - plan.start[name] for name, tensor in self.last.items()}
        return dataclasses.replace(found, tensors=self.last)


def damaged(payload):
    return payload[:-1] + bytes([payload[-1] ^ 1])


class World:
    """A server and four clients; `outcomes` says by client what becomes of its next answer, "good" by default:
    "damaged" on the way, "silent" (trained, and no answer came in time), "loud" (above the norm bound), "killed"
    (before it did anything), "died" (after it trained).

    Attributes:
        away: clients that cannot be asked.
        saved: the server's checkpoints, one a version.
    """

    def __init__(self, values):
        self.config = config_of(build(Feedback.name), TABLE, up=wire.WireOptions(values=values))
        self.trainers = {name: Trainer(place + 1) for place, name in enumerate(NAMES)}
        self.outcomes, self.away, self.saved = {}, set(), []

    def serve(self, checkpoint=None):
        """A new server process, from a checkpoint or from the start."""
        self.server = Server(self.config, ranks=dict.fromkeys(NAMES), minimum=2, norm_bound=10.0)
        if checkpoint is not None:
            self.server.restore(checkpoint.state, checkpoint.server)
            self.server.ledger.restore(checkpoint.missed, checkpoint.known, checkpoint.counted)
        participation = ParticipationSection(minimum=2, attempts=2, norm_bound=10.0)
        self.rounds = Rounds(self.server, self.engine(), participation, 0, lambda text: None)

    def save(self):
        """What the driver writes after a complete round, as bytes."""
        ledger = self.server.ledger
        checkpoint = Checkpoint(
            self.server.state,
            self.server.memory,
            self.kept_here(),
            ledger.contents(),
            ledger.known,
            ledger.counted,
            FEDERATION,
        )
        del self.saved[self.server.version :]
        self.saved.append(checkpoint.to_bytes())

    def read(self, version):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state"
            file.write_bytes(self.saved[version])
            return Checkpoint.load(file, "")

    def counted(self, name):
        """The last round with this client's update in it, as the server knows it."""
        return self.server.ledger.counted.get(name, 0)

    def kept(self, name):
        """What the client will build its next update on."""
        return self.memory(name).settled(self.server.version, self.counted(name)).kept

    def outcome(self, name):
        what = self.outcomes.pop(name, "good")
        self.trainers[name].times = 1000.0 if what == "loud" else 1.0
        return what


class Here(World):
    """In one process; with `late`, clients learn how a round ended with their next task, as across a network."""

    def __init__(self, values="float32", late=False):
        super().__init__(values)
        self.late = late
        self.clients = {name: Client(name, self.config, trainer) for name, trainer in self.trainers.items()}
        self.serve()
        for client in self.clients.values():
            client.start(self.server.start())
        self.rounds.at_newest(NAMES)
        self.save()

    def engine(self):
        world = self

        class Engine(LocalEngine):
            def names(self, *, wait=True):
                return [name for name in NAMES if name not in world.away]

            def ask(self, tasks):
                for name, task in tasks.items():
                    what = world.outcome(name)
                    if what == "killed":
                        yield Failure(name, task.round, "killed")
                        continue
                    answer = self.clients[name].answer(task, lambda *_: None)
                    if what in ("silent", "died"):
                        answer = Failure(name, task.round, "no answer")
                    elif what == "damaged" and isinstance(answer, Update):
                        answer = dataclasses.replace(answer, payload=damaged(answer.payload))
                    yield answer

            def deliver(self, broadcast, counted):
                if world.late:
                    return {}
                # Who was killed before it got its task is behind, and stays so.
                before = broadcast.version - 1
                there = {name: flag for name, flag in counted.items() if self.clients[name].version == before}
                return super().deliver(broadcast, there)

        return Engine(list(self.clients.values()), None)

    def kept_here(self):
        return {name: self.kept(name) for name in self.clients}

    def memory(self, name):
        return self.clients[name].memory

    def resume(self, version):
        """The process is killed, and begins again with the checkpoint of a version, as `local.run` does."""
        checkpoint = self.read(version)
        for name in NAMES:
            client = Client(name, self.config, self.trainers[name])
            client.restore(
                checkpoint.state, ClientMemory(checkpoint.clients.get(name, {}), checkpoint.counted.get(name, 0))
            )
            self.clients[name] = client
        self.serve(checkpoint)
        self.rounds.at_newest(NAMES)

    def lose_replica(self, name):
        self.clients[name].restore(NOTHING)

    def lose_disk(self, name):
        self.clients[name] = Client(name, self.config, self.trainers[name])
        self.rounds.engine = self.engine()


class There(World):
    """Under Flower: every client's state on its own disk, and nothing in memory between two messages."""

    def __init__(self, values="float32", folder=None):
        super().__init__(values)
        pytest.importorskip("flwr")
        from grid import ToyGrid

        from fedsrd.federation.remote.header import Job

        self.own = None if folder else tempfile.TemporaryDirectory()
        self.folder = Path(folder or self.own.name)
        self.job = Job(
            method={"name": Feedback.name}, seed=0, uplink=self.config.uplink, tensors=list(self.config.table.specs)
        )
        self.grid = ToyGrid(self.app, [{"client": name, "state": str(self.folder)} for name in NAMES])
        self.nodes = {name: 10 + place for place, name in enumerate(NAMES)}
        self.serve()
        self.save()

    strict = knows_model = True

    def table(self, job):
        return job.table()

    def trainer(self, job, site):
        return self.trainers[site.name]

    def finish(self, client, job, site, replica):
        pass

    def app(self, message, context):
        from fedsrd.federation.remote import header
        from fedsrd.flower.records import PAYLOADS, envelope_of, respond

        if header.kind_of(envelope_of(message.content)) != "train":
            return respond(message, context, self)
        name = context.node_config["client"]
        what = self.outcome(name)
        if what == "killed":
            raise RuntimeError("killed")
        reply = respond(message, context, self)
        if what == "died":
            raise RuntimeError("died")
        if what == "damaged" and PAYLOADS in reply.content:
            array = reply.content[PAYLOADS]["bytes"]
            array.data = damaged(array.data)
        return None if what == "silent" else reply

    def engine(self):
        from fedsrd.flower.engine import FlowerEngine

        world = self

        class Engine(FlowerEngine):
            def names(self, *, wait=True):
                world.grid.away = {world.nodes[name] for name in world.away}
                return super().names(wait=wait)

        class Watch:
            def event(self, kind, **fields):
                pass

        return Engine(self.grid, self.server, FEDERATION, lambda _: self.job, deadline=0.05, minimum=2, watch=Watch())

    def replica(self, name):
        from fedsrd.federation.remote.replica import Replica

        return Replica(self.folder, FEDERATION, name)

    def kept_here(self):
        return {}

    def memory(self, name):
        client = Client(name, self.config, None)
        self.replica(name).load(client)
        return client.memory

    def resume(self, version):
        """The server is killed, and begins again with the checkpoint of a version; clients know nothing of it."""
        self.serve(self.read(version))

    def lose_replica(self, name):
        self.server.forget(name)

    def lose_disk(self, name):
        (self.replica(name).folder / "replica.safetensors").unlink(missing_ok=True)


WORLDS = {"here": Here, "here, told late": lambda values="float32": Here(values, late=True), "flower": There}
EVERYWHERE = pytest.mark.parametrize("where", WORLDS)


# What must add up.


def plus(total, tensors, share=1.0):
    return {name: total.get(name, 0) + share * tensor.double() for name, tensor in tensors.items()} | {
        name: tensor for name, tensor in total.items() if name not in tensors
    }


def dense(delta):
    return {name: sparse.dense() for name, sparse in delta.items()}


class Books:
    """Sums over the rounds that counted, float64; as they were after every version, for when time goes back."""

    def __init__(self, world):
        self.world = world
        self.made = {name: {} for name in (*NAMES, "server")}
        self.decoded = {name: {} for name in (*NAMES, "server")}
        self.pages = [self._page()]

    def _page(self):
        return dict(self.made), dict(self.decoded), dict(self.world.server.ledger.counted)

    def close(self, done):
        """Notes a closed round."""
        config, world = self.world.config, self.world
        total = {}
        accepted = done.closed.accepted
        for update in accepted:
            arrived = dense(wire.decode_delta(update.payload, config.uplink_table)[1])
            self.made[update.client] = plus(self.made[update.client], world.trainers[update.client].change)
            self.decoded[update.client] = plus(self.decoded[update.client], arrived)
            total = plus(total, arrived, 1 / len(accepted))
        sent = dense(wire.decode_delta(done.closed.broadcast.payload, config.downlink_table(len(accepted)))[1])
        self.made["server"] = plus(self.made["server"], total)
        self.decoded["server"] = plus(self.decoded["server"], sent)
        self.pages.append(self._page())

    def back(self, version):
        """Time goes back to the version; whoever still keeps what it kept then goes on from there."""
        held = {name: self.world.memory(name) for name in NAMES}
        made, decoded, counted = self.pages[version]
        del self.pages[version + 1 :]
        self.made, self.decoded = dict(made), dict(decoded)
        for name, memory in held.items():
            if counted.get(name, 0) not in (memory.round, memory.pending_round):
                self.forget(name)

    def forget(self, name):
        """What a client kept is gone: it begins again with nothing."""
        self.made[name], self.decoded[name] = {}, {}
        if isinstance(self.world, There):
            # Also where time goes back: the server's checkpoints have nothing of what sites keep.
            for made, decoded, _ in self.pages:
                made[name], decoded[name] = {}, {}

    def check(self):
        """That everything adds up to float32 precision."""
        world = self.world
        states = {name: world.kept(name) for name in NAMES} | {"server": world.server.memory}
        for who, memory in states.items():
            residual = {key.removeprefix(RESIDUAL): tensor for key, tensor in memory.items()}
            found = plus(self.decoded[who], residual)
            size = max((float(tensor.abs().max()) for tensor in (*found.values(), *self.made[who].values())), default=0)
            for name in TABLE.shapes:
                zero = torch.zeros(TABLE.shapes[name], dtype=torch.float64)
                torch.testing.assert_close(
                    found.get(name, zero), self.made[who].get(name, zero), rtol=0, atol=4e-6 * (1 + size), msg=who
                )


def one_round(world, books):
    """One round; gives it, or None where too few answers counted."""
    try:
        done = world.rounds.one_round()
    except FederationError as error:
        assert "sent a usable update" in str(error)  # noqa: PT017
        return None
    books.close(done)
    world.save()
    return done


OUTCOMES = st.sampled_from(["good"] * 5 + ["damaged", "silent", "loud", "killed", "died", "away"])
AFTERWARDS = st.sampled_from(["nothing"] * 5 + ["resume", "back", "replica", "disk"])
ROUNDS = st.lists(st.tuples(st.tuples(*[OUTCOMES] * len(NAMES)), AFTERWARDS, st.sampled_from(NAMES)), max_size=9)


def play(world, rounds):
    """Plays drawn events; whatever they are, everything adds up after every one of them."""
    books = Books(world)
    for outcomes, afterwards, victim in rounds:
        said = dict(zip(NAMES, outcomes, strict=True))
        world.away = {name for name, what in said.items() if what == "away"}
        world.outcomes = {name: what for name, what in said.items() if what not in ("good", "away")}
        one_round(world, books)
        version = world.server.version
        if afterwards in ("resume", "back"):
            version = version if afterwards == "resume" else max(version - 2, 0)
            if isinstance(world, There):
                books.back(version)
                world.resume(version)
            else:
                world.resume(version)
                books.back(version)
        elif afterwards == "replica":
            world.lose_replica(victim)
        elif afterwards == "disk":
            world.lose_disk(victim)
            books.forget(victim)
        world.rounds.names(wait=False)  # a new server learns here who holds what
        books.check()
    world.away, world.outcomes = set(), {}
    for _ in range(3):
        assert one_round(world, books) is not None
        books.check()


@pytest.mark.parametrize("values", TYPES)
@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told late"])
@settings(max_examples=15, deadline=None)
@given(rounds=ROUNDS)
def test_nothing_is_lost_or_counted_twice_in_one_process(values, late, rounds):
    play(Here(values, late), rounds)


@pytest.mark.parametrize("values", TYPES)
@settings(max_examples=8, deadline=None)
@given(rounds=ROUNDS)
def test_nothing_is_lost_or_counted_twice_under_flower(values, rounds):
    play(There(values), rounds)


# One thing at a time.


def bits(tensors):
    return digest(dict(sorted(tensors.items())))


def begun(where, rounds=1):
    world = WORLDS[where]()
    books = Books(world)
    for _ in range(rounds):
        assert len(one_round(world, books).closed.accepted) == len(NAMES)
    assert all(world.kept(name) for name in NAMES)
    return world, books


@EVERYWHERE
@pytest.mark.parametrize("what", ["damaged", "silent", "loud", "died", "killed"])
def test_an_update_that_did_not_count_leaves_the_memory_as_it_was(where, what):
    world, books = begun(where)
    before, others = bits(world.kept("c1")), bits(world.kept("c2"))
    world.outcomes = {"c1": what}
    done = one_round(world, books)
    assert [failure.client for failure in done.closed.rejected] == ["c1"]
    assert "norm_bound" in done.closed.rejected[0].reason or what != "loud"
    assert bits(world.kept("c1")) == before
    assert bits(world.kept("c2")) != others
    assert len(one_round(world, books).closed.accepted) == len(NAMES)
    assert bits(world.kept("c1")) != before
    books.check()


@EVERYWHERE
def test_a_round_that_is_repeated_or_failed_changes_nothing_of_what_comes(where):
    calm, _ = begun(where, 3)
    world, books = begun(where)
    before = {name: bits(world.kept(name)) for name in NAMES}
    # Failed: one client answers, in every attempt. It has trained and keeps something, which does not count.
    world.away = {"c1", "c2", "c3"}
    assert one_round(world, books) is None
    assert world.memory("c0").pending_round == 2
    assert {name: bits(world.kept(name)) for name in NAMES} == before
    # Repeated: three of four are silent at first.
    world.away, world.outcomes = set(), {"c1": "silent", "c2": "died", "c3": "damaged"}
    assert one_round(world, books).attempts == 2
    books.check()
    one_round(world, books)
    books.check()
    assert world.server.digest == calm.server.digest
    assert all(bits(world.kept(name)) == bits(calm.kept(name)) for name in NAMES)


@EVERYWHERE
def test_who_is_away_for_rounds_keeps_its_memory(where):
    world, books = begun(where)
    before = bits(world.kept("c3"))
    world.away = {"c3"}
    for _ in range(3):
        one_round(world, books)
        assert bits(world.kept("c3")) == before
    world.away = set()
    assert len(one_round(world, books).closed.accepted) == len(NAMES)
    books.check()


@EVERYWHERE
def test_memory_outlives_a_replica_that_was_lost(where):
    world, books = begun(where, 2)
    before = bits(world.kept("c1"))
    world.lose_replica("c1")
    assert bits(world.kept("c1")) == before
    for _ in range(2):
        done = one_round(world, books)
        books.check()
    assert len(done.closed.accepted) == len(NAMES)


@EVERYWHERE
def test_a_client_that_lost_its_disk_begins_with_nothing(where):
    world, books = begun(where, 2)
    world.lose_disk("c1")
    books.forget("c1")
    assert not world.kept("c1")
    for _ in range(2):
        done = one_round(world, books)
        books.check()
    assert len(done.closed.accepted) == len(NAMES)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_server_set_back_makes_sites_forget_what_came_after(interrupted):
    """Sites know of the rounds that are gone now; what they would add to their next update has been sent in these."""
    world, books = begun("flower", 1)
    early = bits(world.kept("c3"))
    world.away = {"c3"}
    for _ in range(3):
        one_round(world, books)
    if interrupted:
        # In the middle of a round: everybody keeps something of a round that the server has not closed.
        world.outcomes = dict.fromkeys(NAMES, "silent")
        world.away = {"c1", "c2", "c3"}
        assert one_round(world, books) is None
        assert world.memory("c0").pending_round == 5
    world.away = set()
    books.back(1)
    world.resume(1)
    assert world.server.version == 1
    assert [bool(world.kept(name)) for name in NAMES] == [False, False, False, True]
    assert bits(world.kept("c3")) == early
    books.check()
    for number in (2, 3, 4, 5, 6):
        assert one_round(world, books).closed.broadcast.round == number
        books.check()
    assert all(world.counted(name) == 6 for name in NAMES)


@pytest.mark.parametrize("where", ["here", "here, told late"])
def test_a_process_set_back_repeats_itself(where):
    world, books = begun(where, 4)
    calm = world.server.digest, [bits(world.kept(name)) for name in NAMES]
    world.resume(1)
    books.back(1)
    books.check()
    for _ in range(3):
        one_round(world, books)
    assert (world.server.digest, [bits(world.kept(name)) for name in NAMES]) == calm


def test_an_old_message_changes_nothing_on_a_sites_disk():
    from fedsrd.federation.remote import header
    from fedsrd.flower.records import envelope_of

    world, _ = begun("flower", 3)
    world.rounds.finalize()
    file = world.replica("c0").folder / "replica.safetensors"
    before = file.read_bytes()
    old = [
        message
        for message in world.grid.sent
        if message.metadata.dst_node_id == world.nodes["c0"] and header.kind_of(envelope_of(message.content)) == "train"
    ]
    assert len(old) == 3
    for message in old:
        (name,) = world.grid.push_messages([message])
        (reply,) = world.grid.pull_messages([name])
        said, _ = header.unpack(envelope_of(reply.content), header.TrainReply)
        assert "came late" in said.failure
        assert file.read_bytes() == before


KEPT, PENDING = {"r": torch.ones(1)}, {"r": torch.zeros(1)}


@pytest.mark.parametrize(
    ("memory", "version", "counted", "expected"),
    [
        # Its update counted; did not; the round is still open.
        (ClientMemory(KEPT, 1, PENDING, 2), 2, 2, ClientMemory(PENDING, 2)),
        (ClientMemory(KEPT, 1, PENDING, 2), 2, 1, ClientMemory(KEPT, 1)),
        (ClientMemory(KEPT, 1, PENDING, 2), 1, 1, ClientMemory(KEPT, 1, PENDING, 2)),
        # Nothing new since.
        (ClientMemory(KEPT, 1), 5, 1, ClientMemory(KEPT, 1)),
        # The server went back: what is kept, and maybe what is pending, is of rounds that are gone.
        (ClientMemory(KEPT, 3), 1, 1, ClientMemory({}, 1)),
        (ClientMemory(KEPT, 3, PENDING, 4), 1, 1, ClientMemory({}, 1, PENDING, 4)),
        (ClientMemory(KEPT, 3, PENDING, 4), 4, 1, ClientMemory({}, 1)),
        # It went back to before the round that is pending here, and what was kept before is still right.
        (ClientMemory(KEPT, 1, PENDING, 4), 2, 1, ClientMemory(KEPT, 1, PENDING, 4)),
        # This client went back.
        (ClientMemory(KEPT, 1), 3, 3, ClientMemory({}, 3)),
        (ClientMemory({}), 3, 3, ClientMemory({}, 3)),
    ],
)
def test_what_is_kept_is_of_the_round_that_counted(memory, version, counted, expected):
    found = memory.settled(version, counted)
    assert (found.round, found.pending_round) == (expected.round, expected.pending_round)
    assert found.kept == expected.kept
    assert found.pending is expected.pending
    assert found.settled(version, counted) == found

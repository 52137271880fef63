"""Whole federations among adversaries: clients and servers that lie, bad disks, clocks that jump, kills at any moment.

The real server loop, run folder, protocol and client end, on Flower's in-process grid; only training is a toy. Whatever
is done to a federation, in any order:

1. nobody sees an exception but ours;
2. replicas are equal: when it has ended, every site holds the server's state, bit for bit;
3. nothing is committed that cannot be resumed: what is on the disk is whole, finite and sane, and the run goes on
   from it to its end when the adversaries are gone.
"""

import copy
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from adversaries import FIELDS, LIES, NUMBERS, TEXTS, Knows, failing, numbered
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy import ToyTrainer

from fedsrd import files
from fedsrd import recipe as recipes
from fedsrd.core.lora import LoraModule, table_of
from fedsrd.errors import FedSRDError
from fedsrd.federation.resume import restore
from fedsrd.federation.setup import Prepared, config_of
from fedsrd.runs.folder import RunFolder

pytest.importorskip("flwr")
from flwr.app import Array, ArrayRecord, ConfigRecord
from grid import ToyGrid

from fedsrd.flower import server as flower
from fedsrd.flower.records import HEADER, PAYLOADS, envelope_of, respond

TABLE = table_of((LoraModule("l0.q", 12, 8, 2), LoraModule("l1.q", 6, 8, 2)))
NAMES = ("c0", "c1", "c2", "c3")
LIAR = "c3"
METHODS = (
    {"name": "fedsrd", "damping": 0.1},
    {"name": "fedsrd-e", "damping": 0.1},
    {"name": "fedavg"},
    {"name": "flora"},
    {"name": "fedex-lora"},
    {"name": "flasc"},
    {"name": "scaffold"},
)
ROUNDS = 6
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


class KilledError(BaseException):
    """The end of a process; nothing catches it."""


class Watch:
    """Hears all, and says nothing."""

    def __init__(self):
        self.warnings = []

    def event(self, kind, **fields):
        json.dumps(fields, allow_nan=False)

    def say(self, text):
        pass

    warn = say

    def activity(self, *_):
        pass

    def round_done(self, record):
        pass


class Sites:
    """What every client process does: our protocol, with a toy in the place of training."""

    strict = True
    knows_model = True

    def __init__(self):
        self.trainers = {name: ToyTrainer(place + 1) for place, name in enumerate(NAMES)}

    def table(self, job):
        return TABLE

    def trainer(self, job, site):
        return self.trainers[site.name]

    def evaluate(self, client, job, round_number):
        return {}

    def finish(self, client, job, site, replica):
        pass


class World:
    """A federation, what is done to it next, and what must hold."""

    def __init__(self, method, weighting, values, fraction):
        self.home = Path(tempfile.mkdtemp(prefix="fedsrd-test-"))
        self.recipe = recipes.parse(
            {
                "name": "toy",
                "rounds": ROUNDS,
                "weighting": weighting,
                "model": {"id": "nobody/nothing"},
                "lora": {"rank": 2},
                "method": method,
                "wire": {"uplink": {"values": values}, "downlink": {"values": values}},
                "participation": {"minimum": 2, "deadline": 0.02, "attempts": 2, "fraction": fraction},
                "clients": [{"name": name} for name in NAMES],
            }
        )
        self.config = config_of(self.recipe, TABLE)
        self.sites = Sites()
        self.grid = ToyGrid(self.app, [{"client": name, "state": str(self.home / "sites")} for name in NAMES])
        self.grid.meddle = self.meddle
        self.knows = Knows(self.config.uplink_table)
        self.lies, self.bugs, self.left = [], [], None

    # The clients.

    def app(self, message, context):
        self.step()
        try:
            return respond(message, context, self.sites)
        except FedSRDError:
            raise
        except Exception as error:
            self.bugs.append(error)
            raise

    def meddle(self, node, reply):
        """Every reply on its way; the liar's may be changed."""
        name = self.grid.configs[node]["client"]
        if reply.has_error():
            return reply
        said = json.loads(reply.content.config_records[HEADER]["json"])
        payload = envelope_of(reply.content).payload
        if said["kind"] != "train-reply":
            return reply
        if name != LIAR:
            self.knows.others[name] = payload
            return reply
        genuine = payload
        if self.lies and payload:
            lie = self.lies.pop(0)
            if lie == "silence":
                return None
            said, payload = lie(said, payload, self.knows)
            reply.content[HEADER] = ConfigRecord({"json": json.dumps(said)})
            reply.content[PAYLOADS] = ArrayRecord({"bytes": Array("uint8", (len(payload),), "fedsrd.bytes", payload)})
        self.knows.own.append(genuine)
        self.knows.others.clear()
        return reply

    # The server.

    def step(self):
        """A moment at which the machine may be killed."""
        if self.left is not None:
            if self.left == 0:
                raise KilledError
            self.left -= 1

    @property
    def folder(self):
        return RunFolder(self.home / "run")

    def serve(self, steps):
        """A server process, from what is on the disk, until it ends or is killed after so many moments."""
        from peft import LoraConfig

        self.left = steps
        resume = self.folder.recipe_file.exists()
        lora = LoraConfig(r=2, target_modules=["q"])
        prepared = Prepared(self.recipe, self.folder, TABLE, lora, resume)
        try:
            with self.folder.locked():
                return flower._serve(self.grid, self.recipe, prepared, Watch(), {})[0]
        except KilledError:
            return None
        finally:
            self.left = None

    def sound(self):
        """What is on the disk can be resumed: whole, finite, and of one piece."""
        restored = restore(self.folder)
        if restored is None:
            return
        checkpoint, records = restored
        for tensors in (checkpoint.state.tensors, checkpoint.state.base_delta, checkpoint.server):
            # Honest steps are of 0.05; the norm bound lets ten times that pass, in one element at worst.
            assert all(bool((tensor.abs() < 1e4).all()) for tensor in tensors.values())
        assert records[-1].round == checkpoint.state.version
        assert records[-1].digest == checkpoint.state.digest

    def digests(self):
        """What every site holds, by name: version and digest."""
        from fedsrd.federation.remote.replica import Replica

        found = {}
        for name in NAMES:
            replicas = [Replica(path.parent, path.name, name).state() for path in (self.home / "sites").iterdir()]
            newest = max(replicas, key=lambda state: state.version)
            found[name] = (newest.version, newest.digest)
        return found


class Federation(RuleBasedStateMachine):
    """Anything, in any order."""

    @initialize(
        method=st.sampled_from(METHODS),
        weighting=st.sampled_from(("uniform", "examples")),
        values=st.sampled_from(("float32", "int4")),
        fraction=st.sampled_from((0.5, 1.0)),
        lies=st.lists(st.sampled_from(sorted(LIES)), max_size=ROUNDS),
    )
    def begin(self, method, weighting, values, fraction, lies):
        self.world = World(method, weighting, values, fraction)
        self.world.lies += [LIES[lie] for lie in lies]
        self.patch = pytest.MonkeyPatch()
        written = files.write_atomically
        world = self.world

        def write(path, content, *args, **kwargs):
            # Killed before a file is there, or after it.
            world.step()
            written(path, content, *args, **kwargs)
            world.step()

        for module in ("fedsrd.runs.folder", "fedsrd.federation.remote.replica"):
            self.patch.setattr(f"{module}.write_atomically", write)
        self.hours = 0.0
        clock = time.time
        self.patch.setattr(time, "time", lambda: clock() + 3600 * self.hours)
        self.saved = {}

    # A client that lies.

    @rule(lie=st.sampled_from(sorted(LIES)))
    def lie(self, lie):
        self.world.lies.append(LIES[lie])

    @rule(text=st.sampled_from(TEXTS))
    def fail(self, text):
        self.world.lies.append(failing(text))

    @rule(where=st.sampled_from(FIELDS), value=st.sampled_from(NUMBERS))
    def say(self, where, value):
        self.world.lies.append(numbered(where, value))

    @rule()
    def keep_silent(self):
        self.world.lies.append("silence")

    # Bad moments, clocks and connections.

    @rule(steps=st.integers(0, 60) | st.just(1000))
    def run_until_killed(self, steps):
        _, reason = told(lambda: self.world.serve(steps))
        assert not CONTROL.search(reason), reason

    @rule(hours=st.floats(-1e5, 1e5))
    def the_clock_jumps(self, hours):
        self.hours = hours

    @rule(name=st.sampled_from(NAMES))
    def a_site_goes_or_comes(self, name):
        node = 10 + NAMES.index(name)
        self.world.grid.away ^= {node}

    # Bad disks.

    @rule(
        name=st.sampled_from(NAMES),
        place=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(("bit", "cut", "gone")),
    )
    def a_sites_disk_fails(self, name, place, how):
        for file in (self.world.home / "sites").glob(f"*/{name}/replica.safetensors"):
            damage(file, place, how)

    @rule(name=st.sampled_from(NAMES))
    def a_site_is_backed_up(self, name):
        for file in (self.world.home / "sites").glob(f"*/{name}/replica.safetensors"):
            self.saved[file] = file.read_bytes()

    @precondition(lambda self: self.saved)
    @rule()
    def backups_of_sites_are_put_back(self):
        for file, content in self.saved.items():
            if file.parent.is_dir():
                file.write_bytes(content)

    @rule(
        file=st.sampled_from(("state/global.safetensors", "rounds.jsonl", "recipe.toml")),
        place=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(("bit", "cut", "gone", "twice")),
    )
    def the_servers_disk_fails(self, file, place, how):
        """What cannot be resumed is said to be so; the administrator puts the backup back."""
        path = self.world.home / "run"
        if not (path / file).is_file():
            return
        backup = self.world.home / "backup"
        shutil.copytree(path, backup)
        before = restore(self.world.folder)
        damage(path / file, place, how)
        found, reason = told(self.resumed)
        shutil.rmtree(path)
        backup.rename(path)
        if reason:
            assert str(path) in reason
        else:
            assert_same(found, before)

    def resumed(self):
        """What a run would go on from."""
        self.world.folder.check(self.world.recipe, resume=True)
        return restore(self.world.folder)

    # A server that lies.

    @precondition(lambda self: self.world.grid.sent)
    @rule(
        which=st.integers(0, 1000),
        where=st.sampled_from(
            ("round", "version", "digest", "reset", "sync.counted", "sync.snapshot", "sync.start", "job.method",
             "job.seed", "job.rank", "job.tensors", "job.recipe", "name", "kind", "federation", "protocol")
        ),
        value=st.sampled_from((*NUMBERS, *TEXTS, True, {}, [], "0" * 64, {"name": "flora"}, {"name": "fedavg"})),
        payload=st.sampled_from(("same", "none", "half", "twice")),
        name=st.sampled_from(NAMES),
    )  # fmt: skip
    def the_server_lies(self, which, where, value, payload, name):
        """A client gets an altered message; it may lose its replica by it, but it sees no exception but ours."""
        world = self.world
        message = world.grid.sent[which % len(world.grid.sent)]
        altered = copy.deepcopy(message)
        if not altered.has_content():
            return
        said = json.loads(altered.content.config_records[HEADER]["json"])
        said, _ = numbered(where, value)(said, b"", None)
        altered.content[HEADER] = ConfigRecord({"json": json.dumps(said)})
        if PAYLOADS in altered.content:
            array = altered.content[PAYLOADS]["bytes"]
            size = {
                "same": array.data,
                "none": b"",
                "half": array.data[: len(array.data) // 2],
                "twice": array.data * 2,
            }
            array.data = size[payload]
        node = 10 + NAMES.index(name)
        reply = world.grid.app_reply(altered, node)
        assert reply is not None

    @invariant()
    def nobody_sees_an_exception_but_ours(self):
        if hasattr(self, "world"):
            assert not self.world.bugs, self.world.bugs

    @invariant()
    def what_is_committed_can_be_resumed(self):
        if hasattr(self, "world"):
            self.world.sound()

    def teardown(self):
        """The adversaries are gone; the federation comes to its end, and all hold the same."""
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            world.lies.clear()
            world.grid.away.clear()
            summary = world.serve(None)
            assert not world.bugs, world.bugs
            assert set(world.digests().values()) == {(ROUNDS, summary.digest)}
            assert world.folder.summary() == summary
            json.loads((world.home / "run" / "summary.json").read_text(), parse_constant=refuse)
            for line in (world.home / "run" / "rounds.jsonl").read_text().splitlines():
                json.loads(line, parse_constant=refuse)
        finally:
            self.patch.undo()
            shutil.rmtree(world.home)


def told(what):
    """What it gives, or what an error of ours says that ended it."""
    try:
        return what(), ""
    except FedSRDError as error:
        return None, str(error)


def refuse(constant):
    raise AssertionError(f"{constant} in JSON")


def damage(file, place, how):
    """Flips a bit at a share of the file's length, cuts it there, doubles or deletes it."""
    content = bytearray(file.read_bytes())
    if how == "gone" or not content:
        file.unlink()
        return
    at = int(place * len(content))
    if how == "bit":
        content[at] ^= 1 << (at % 8)
    file.write_bytes({"bit": content, "cut": content[:at], "twice": content * 2}[how])


def assert_same(found, before):
    """What was restored is what was there."""
    assert (found is None) == (before is None)
    if found is None:
        return
    one, other = found[0], before[0]
    assert one.notes() == other.notes()
    assert one.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    assert found[1] == before[1]


Federation.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    suppress_health_check=list(HealthCheck),
)
TestFederation = Federation.TestCase

"""Whose name it is: with a key in the recipe, that of the site that holds its other half, whoever comes first."""

import json

import pytest
import tomli_w
from grid import ToyGrid
from toy import TABLE, ToyTrainer, build, config_of

from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.messages import Failure, Update
from fedsrd.federation.remote import identity
from fedsrd.federation.remote.header import Job
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.server import Server
from fedsrd.flower.client_app import app as client_app
from fedsrd.flower.engine import FlowerEngine
from fedsrd.flower.records import HEADER, respond
from fedsrd.flower.server import serve
from fedsrd.recipe import ParticipationSection


class Runtime:
    strict = True
    knows_model = True

    def table(self, job):
        return job.table()

    def trainer(self, job, site):
        return ToyTrainer(1 + int(site.name[-1]))

    def finish(self, client, job, site, replica):
        pass


class World:
    """A server, and nodes 10, 11, ... with the node configs given; `events` is what its engine tells."""

    def __init__(self, folder, configs, roster=("c0", "c1"), keys=None, minimum=1):
        config = config_of(build("fedavg"))
        self.server = Server(config, ranks=dict.fromkeys(roster))
        job = Job(method={"name": "fedavg"}, seed=0, uplink=config.uplink, tensors=list(TABLE.specs))
        settings = [{"state": str(folder / str(place)), **one} for place, one in enumerate(configs)]
        self.grid = ToyGrid(lambda message, context: respond(message, context, Runtime()), settings)
        self.events = []
        self.engine = FlowerEngine(
            self.grid, self.server, "0" * 16, lambda _: job, deadline=0.3, minimum=minimum, watch=self, keys=keys
        )
        self.rounds = Rounds(self.server, self.engine, ParticipationSection(minimum=minimum), 0, lambda text: None)

    def event(self, kind, **fields):
        self.events.append((kind, fields))

    def told(self, kind):
        return [fields for found, fields in self.events if found == kind]

    def node(self, name):
        return self.engine._id(name)


@pytest.fixture
def keys(tmp_path):
    """Two sites' key files, and their public halves."""
    files = [tmp_path / f"{name}.key" for name in ("c0", "c1")]
    return [str(file) for file in files], [identity.create(file).public for file in files]


@pytest.mark.parametrize("liar", [{}, {"key": 1}])
def test_a_name_with_a_key_waits_for_its_site_whoever_greets_first(tmp_path, keys, liar):
    files, public = keys
    liar = {"client": "c0"} | {name: files[place] for name, place in liar.items()}
    world = World(tmp_path, [liar, {"client": "c0", "key": files[0]}], ["c0"], {"c0": public[0]})
    world.grid.away = {11}
    assert world.engine.names() == []
    (refused,) = world.told("refused")
    assert refused["client"] == "c0"
    assert "proves none" in refused["reason"] if "key" not in liar else f"it shows {public[1]}" in refused["reason"]
    world.grid.away = set()
    assert world.engine.names() == ["c0"]
    assert world.node("c0") == 11
    closed = world.rounds.one_round().closed
    assert [update.client for update in closed.accepted] == ["c0"]
    # It is asked every round, and told of once.
    assert len(world.told("refused")) == 1
    trained = [message for message in world.grid.sent if '"kind":"train"' in message.content[HEADER]["json"]]
    assert {message.metadata.dst_node_id for message in trained} == {11}


def test_a_site_that_comes_back_as_another_node_takes_its_name_over(tmp_path, keys):
    files, public = keys
    site = {"client": "c0", "key": files[0], "state": str(tmp_path / "same")}
    world = World(tmp_path, [site, site, {"client": "c1"}], ["c0", "c1"], {"c0": public[0]})
    world.grid.away = {11}
    world.rounds.one_round()
    assert world.node("c0") == 10
    world.grid.away = set()
    closed = world.rounds.one_round().closed
    assert world.node("c0") == 11
    assert sorted(update.client for update in closed.accepted) == ["c0", "c1"]
    assert [(fields["client"], fields["node"]) for fields in world.told("moved")] == [("c0", 11)]
    assert not world.told("refused")
    assert world.told("joined")[-1]["held"] == 0


def test_a_site_that_mends_its_key_has_its_name_in_the_next_round(tmp_path, keys):
    files, public = keys
    world = World(tmp_path, [{"client": "c0", "key": files[0]}], ["c0"], {"c0": public[0]})
    (tmp_path / "c0.key").chmod(0o644)
    assert world.engine.names() == world.engine.names() == []
    (refused,) = world.told("refused")
    assert "chmod 600" in refused["reason"]
    (tmp_path / "c0.key").chmod(0o600)
    assert world.engine.names() == ["c0"]


def test_a_name_without_a_key_is_the_first_ones_until_it_leaves(tmp_path):
    world = World(tmp_path, [{"client": "c0"}, {"client": "c0"}])
    assert world.engine.names() == ["c0"]
    assert world.node("c0") == 10
    (refused,) = world.told("refused")
    assert "another SuperNode is called c0 too, and no key in the recipe tells which is right" in refused["reason"]
    world.grid.away = {10}
    assert world.engine.names() == ["c0"]
    assert world.node("c0") == 11


def test_where_all_clients_have_keys_nobody_else_joins(tmp_path, keys):
    files, public = keys
    nodes = [{"client": "c9"}, {"client": "c0", "key": files[0]}]
    closed = World(tmp_path, nodes, ["c0"], {"c0": public[0]})
    assert closed.engine.names() == ["c0"]
    assert [one["reason"] for one in closed.told("refused")] == ["c9 is not in the recipe, whose clients all have keys"]
    half = World(tmp_path, nodes, ["c0", "c1"], {"c0": public[0]})
    assert half.engine.names() == ["c0", "c9"]


class Meddler:
    """Node 10, which has the other node's answers to greetings, and shows them as its own."""

    def __init__(self, world):
        self.world, self.seen, self.tries = world, [], 0

    def __call__(self, node, reply):
        if reply.has_error() or "hello-reply" not in reply.content[HEADER]["json"]:
            return reply
        if node == 11:
            self.seen.append(reply.content[HEADER]["json"])
        elif self.seen:
            self.tries += 1
            reply.content[HEADER]["json"] = self.seen[-1]
        return reply


def test_a_signature_that_was_seen_is_worth_nothing_to_another_node_or_later(tmp_path, keys):
    files, public = keys
    world = World(tmp_path, [{"client": "c1"}, {"client": "c0", "key": files[0]}], ["c0"], {"c0": public[0]})
    world.grid.meddle = meddler = Meddler(world)
    assert world.engine.names() == ["c0"]
    for _ in range(2):
        assert world.engine.names() == ["c0"]
        assert world.node("c0") == 11
    assert meddler.tries == 2
    assert "its signature is not of this greeting" in world.told("refused")[-1]["reason"]
    # Not to the very node either, in a greeting after that.
    world.grid.away = {10, 11}
    assert world.engine.names(wait=False) == []
    world.grid.away = {10}

    def again(node, reply):
        reply.content[HEADER]["json"] = meddler.seen[0]
        return reply

    world.grid.meddle = again
    assert world.engine.names(wait=False) == []


@pytest.mark.parametrize("change", [{"held": 3}, {"digest": "0" * 64}, {"name": "c1"}])
def test_what_is_signed_cannot_be_changed_on_the_way(tmp_path, keys, change):
    files, public = keys
    world = World(tmp_path, [{"client": "c0", "key": files[0]}], ["c0", "c1"], {"c0": public[0], "c1": public[1]})

    def meddle(node, reply):
        said = json.loads(reply.content[HEADER]["json"])
        reply.content[HEADER]["json"] = json.dumps({**said, **change})
        return reply

    world.grid.meddle = meddle
    assert world.engine.names() == []
    assert "does not hold the key of" in world.told("refused")[0]["reason"]


def test_greetings_never_have_the_same_number(tmp_path):
    world = World(tmp_path, [{"client": "c0"}, {"client": "c1"}, {"client": "c0"}])
    world.engine.names()
    world.engine.names()
    told = [json.loads(message.content[HEADER]["json"]) for message in world.grid.sent]
    nonces = [one["nonce"] for one in told if one["kind"] == "hello"]
    assert len(nonces) == len(set(nonces)) == 4
    nodes = [message.metadata.dst_node_id for message in world.grid.sent]
    assert [one["node"] for one in told] == nodes


def test_an_answer_counts_only_from_the_node_that_was_asked(tmp_path):
    """Node 11 answers what node 10 was asked, with an update that would be good: nothing of it is taken."""
    world = World(tmp_path, [{"client": "c0"}, {"client": "c1"}])
    assert world.engine.names() == ["c0", "c1"]

    def meddle(node, reply):
        if node == 10 and '"train-reply"' in reply.content[HEADER]["json"]:
            reply.metadata.__dict__["_src_node_id"] = 11
        return reply

    world.grid.meddle = meddle
    answers = {answer.client: answer for answer in world.engine.ask(world.rounds.tasks(1, {}))}
    assert isinstance(answers["c1"], Update)
    assert isinstance(answers["c0"], Failure)
    assert "no answer" in answers["c0"].reason
    assert {"node": 11, "reason": "it answered what node 10 was asked"} in world.told("refused")

    # Nor the last word on what is held.
    def last(node, reply):
        if node == 10 and '"sync-reply"' in reply.content[HEADER]["json"]:
            reply.metadata.__dict__["_src_node_id"] = 11
        return reply

    world.grid.meddle = last
    world.rounds.close(answers)
    world.rounds.finalize()
    assert world.server.ledger.known.get("c0") != world.server.version
    assert world.server.ledger.known["c1"] == world.server.version


def test_names_that_nothing_binds_are_warned_of():
    assert identity.unbound_names(["a", "b"], {"a": "x", "b": "y"}) is None
    assert "first has them: b (" in identity.unbound_names(["a", "b"], {"a": "x"})
    assert "first has them: all clients (" in identity.unbound_names([], {})
    assert "c7, ... (" in identity.unbound_names([f"c{place}" for place in range(30)], {})


def run(recipe, folder, grid):
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    serve(grid, {"recipe": str(folder / "recipe.toml"), "out": str(folder / "run")})
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
    return [line.get("text", "") for line in lines if line["event"] == "warning"], records


def test_a_run_with_keys_keeps_who_greets_first_under_anothers_name_out(tiny_recipe, tmp_path, keys):
    files, public = keys
    tiny_recipe |= {"rounds": 1, "participation": {"minimum": 2, "deadline": 5.0}}
    for place, entry in enumerate(tiny_recipe["clients"]):
        entry["key"] = public[place]
    nodes = [
        {"client": entry["name"], "data": entry["data"]["source"], "key": files[place]}
        for place, entry in enumerate(tiny_recipe["clients"])
    ]
    liar = {key: value for key, value in nodes[1].items() if key != "key"} | {"client": "left"}
    configs = [{**one, "state": str(tmp_path / str(place))} for place, one in enumerate([liar, *nodes])]
    grid = ToyGrid(client_app, configs)
    warned, records = run(tiny_recipe, tmp_path, grid)
    assert not any("no key binds" in text for text in warned)
    assert set(records[1]["bytes_up"]) == {"left", "right"}
    trained = [m for m in grid.sent if '"kind":"train"' in m.content[HEADER]["json"]]
    assert {message.metadata.dst_node_id for message in trained} == {11, 12}


def test_a_run_without_keys_says_so_once(tiny_recipe, tmp_path):
    tiny_recipe |= {"rounds": 1}
    configs = [
        {"client": entry["name"], "data": entry["data"]["source"], "state": str(tmp_path)}
        for entry in tiny_recipe["clients"]
    ]
    warned, _ = run(tiny_recipe, tmp_path, ToyGrid(client_app, configs))
    assert [text for text in warned if "no key binds these names to a site" in text and "left, right" in text]
    assert len([text for text in warned if "no key binds" in text]) == 1


def test_the_strategy_takes_keys(keys):
    from fedsrd.flower import FedSRD

    public = keys[1]
    with pytest.raises(RecipeError, match="keys.c0 = 'ed25519:x': .*the line that `fedsrd key` prints"):
        FedSRD(keys={"c0": "ed25519:x"})
    assert FedSRD(keys={"c0": public[0]}).options.keys == {"c0": public[0]}


def test_a_run_is_resumed_with_a_sites_new_key(tiny_recipe, tmp_path, keys):
    """The site lost the old one; nothing else of the recipe may change."""
    files, public = keys
    tiny_recipe |= {"rounds": 2, "participation": {"deadline": 0.5, "attempts": 1}}
    tiny_recipe["clients"] = [{**tiny_recipe["clients"][0], "key": public[0]}]
    site = {"client": "left", "data": tiny_recipe["clients"][0]["data"]["source"], "state": str(tmp_path / "state")}
    grid = ToyGrid(client_app, [{**site, "key": files[0]}])

    def lost(node, reply):
        if '"round":2' in grid.sent[-1].content[HEADER]["json"]:
            grid.configs[10] = {**site, "key": files[1]}
            return None
        return reply

    grid.meddle = lost
    with pytest.raises(FederationError, match="no client sent a usable update"):
        run(tiny_recipe, tmp_path, grid)
    grid.meddle = lambda node, reply: reply
    with pytest.raises(FederationError, match="no client sent a usable update"):
        serve(grid, {"out": str(tmp_path / "run"), "resume": True})
    tiny_recipe["clients"][0]["key"] = public[1]
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(tiny_recipe))
    summary = serve(grid, {"recipe": str(tmp_path / "recipe.toml"), "out": str(tmp_path / "run"), "resume": True})
    assert summary.rounds == 2


def test_a_site_with_two_nodes_keeps_its_name_when_the_newer_one_leaves(tmp_path, keys):
    files, public = keys
    site = {"client": "c0", "key": files[0], "state": str(tmp_path / "same")}
    world = World(tmp_path, [site, site], ["c0"], {"c0": public[0]})
    world.grid.away = {11}
    assert world.engine.names() == ["c0"]
    world.grid.away = set()
    assert world.engine.names() == world.engine.names() == ["c0"]
    assert world.node("c0") == 11
    world.grid.away = {11}
    assert world.engine.names() == ["c0"]
    assert world.node("c0") == 10

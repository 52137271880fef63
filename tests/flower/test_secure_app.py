"""Secure aggregation on an in-process grid: whoever drops, lies, crashes or comes back, the states are those of a run
in the clear, or nothing is learnt.
"""

import json

import pytest
import tomli_w
from grid import ToyGrid
from test_app import crowd, events, in_one_process, records, site  # noqa: F401

from fedsrd.errors import FederationError
from fedsrd.federation.remote import identity
from fedsrd.federation.remote.header import Envelope
from fedsrd.flower.client_app import app as client_app
from fedsrd.flower.records import content_of, envelope_of
from fedsrd.privacy.packed import pack


def secure(tree, tmp_path, count=4, threshold=3, signed=False, rounds=2, **participation):
    """A recipe of so many clients with secure aggregation, and node configs."""
    tree = {**crowd(tree, tmp_path, count, **participation), "rounds": rounds}
    tree["method"] = {"name": "cyclic", "period": 2}
    tree["wire"] = {"sum": {"levels": 7}}
    clear = json.loads(json.dumps(tree))
    tree["privacy"] = {"secure_aggregation": {"threshold": threshold}}
    nodes = [
        {"client": entry["name"], "data": entry["data"]["source"], "state": str(tmp_path / "state")}
        for entry in tree["clients"]
    ]
    if signed:
        peers = {}
        for entry, node in zip(tree["clients"], nodes, strict=True):
            node["key"] = str(tmp_path / f"{entry['name']}.pem")
            peers[entry["name"]] = entry["key"] = identity.create(tmp_path / f"{entry['name']}.pem").public
            node["peers"] = str(tmp_path / "peers.toml")
        (tmp_path / "peers.toml").write_text(tomli_w.dumps({"peers": peers}))
    return tree, clear, ToyGrid(client_app, nodes)


def digests(path):
    return [record.digest for record in records(path)]


def kind(message):
    """Of a message of ours: its kind, or the phase of secure aggregation that it belongs to."""
    said = json.loads(envelope_of(message.content).text)
    return said.get("phase") or said["kind"]


@pytest.mark.parametrize("signed", [False, True])
def test_masked_updates_lead_to_the_states_of_those_in_the_clear(tiny_recipe, tmp_path, site, signed):  # noqa: F811
    tree, clear, grid = secure(tiny_recipe, tmp_path, signed=signed)
    in_one_process(clear, tmp_path / "calm")
    _, run, _ = site(tree, grid)
    run()
    assert digests(tmp_path / "run") == digests(tmp_path / "calm")
    phases = [kind(message) for message in grid.sent]
    assert ("confirm" in phases) == signed
    # No secret of a session outlives the run.
    assert not (tmp_path / "run" / "state" / "secure.json").exists()
    for file in (tmp_path / "state").glob("*/c*/session.json"):
        assert json.loads(file.read_text()) == {"revealed": 2, "origin": "", "client": ""}
        assert file.stat().st_mode & 0o077 == 0


PHASES = ["keys", "shares", "train", "confirm", "reveal"]


def losing(grid, node, phase, nth=1):
    """The node's answer to that phase does not come, the nth time, once."""
    count = 0

    def meddle(sender, reply):
        nonlocal count
        if sender == node and kind(grid.sent[-1]) == phase:
            count += 1
            if count == nth:
                return None
        return reply

    grid.meddle = meddle


@pytest.mark.parametrize("phase", PHASES)
def test_who_drops_at_any_phase_is_left_out_and_the_sum_is_exact(tiny_recipe, tmp_path, site, phase):  # noqa: F811
    """Before the masked update the others' sum is closed with; after it the dropped one's own is in it."""
    tree, clear, grid = secure(tiny_recipe, tmp_path, signed=True, rounds=1)
    losing(grid, 11, phase)
    if phase in PHASES[:3]:
        clear["clients"] = [entry for entry in clear["clients"] if entry["name"] != "c1"]
    in_one_process(clear, tmp_path / "calm")
    _, run, _ = site({**tree, "participation": {"deadline": 0.2}}, grid)
    run()
    (found,), (calm,) = records(tmp_path / "run")[1:], records(tmp_path / "calm")[1:]
    assert set(found.bytes_up) == set(calm.bytes_up)
    if phase in PHASES[3:]:
        assert found.digest == calm.digest
    else:
        assert "no answer" in found.rejected["c1"]


def test_fewer_than_the_threshold_is_a_new_session(tiny_recipe, tmp_path, site):  # noqa: F811
    tree, clear, grid = secure(tiny_recipe, tmp_path, rounds=1, threshold=4)
    losing(grid, 11, "shares")
    in_one_process(clear, tmp_path / "calm")
    _, run, _ = site({**tree, "participation": {"deadline": 0.2}}, grid)
    run()
    (record,) = records(tmp_path / "run")[1:]
    assert record.attempts == 2
    assert record.digest == digests(tmp_path / "calm")[1]
    nonces = {
        json.loads(envelope_of(message.content).payload)["session"]["nonce"]
        for message in grid.sent
        if kind(message) == "keys"
    }
    assert len(nonces) == 2


def test_a_sum_that_too_few_unmask_waits_for_them(tiny_recipe, tmp_path, site):  # noqa: F811
    """Who has revealed joins no other session of the round; the run goes on with the same one when they are back."""
    tree, clear, grid = secure(tiny_recipe, tmp_path, rounds=2, threshold=4)
    in_one_process(clear, tmp_path / "calm")
    tree["participation"] = {"deadline": 0.2, "attempts": 2}
    grid.meddle = lambda node, reply: None if node == 11 and kind(grid.sent[-1]) == "reveal" else reply
    _, run, _ = site(tree, grid)
    with pytest.raises(FederationError, match=r"too few clients help to unmask their sum \(c1: no answer"):
        run()
    assert (tmp_path / "run" / "state" / "secure.json").stat().st_mode & 0o077 == 0
    sent = len(grid.sent)
    grid.meddle = lambda node, reply: reply
    run(resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "calm")
    phases = [kind(message) for message in grid.sent[sent:]]
    # Of the first round nothing was trained or masked again.
    assert phases[: phases.index("keys")].count("train") == 0 or phases.count("train") == 4


@pytest.mark.parametrize(
    ("signed", "away", "changes"),
    [
        (True, True, {}),
        (True, False, {"method": {"name": "fedavg"}}),
        (False, True, {"rounds": 2}),
        (False, False, {"wire": {"sum": {"levels": 9}}}),
    ],
)
def test_the_same_training_in_another_run_is_not_summed_with_one_site_less(
    tiny_recipe,
    tmp_path,
    site,  # noqa: F811
    signed,
    away,
    changes,
):
    """The difference of the two sums would be that site's update."""
    tree, _, grid = secure(tiny_recipe, tmp_path, signed=signed, rounds=1, attempts=1)
    _, run, _ = site(tree, grid)
    first = run()
    tree["participation"] |= {"deadline": 0.5, "minimum": 3}
    _, run, _ = site({**tree, **changes}, grid)
    # The same sites, to the end: nothing is learnt that was not known.
    if not changes:
        assert run(out=str(tmp_path / "same")).digest == first.digest
    if away:
        grid.away = {13}
    else:
        losing(grid, 13, "train")
    sent = len(grid.sent)
    with pytest.raises(FederationError, match="in a sum of other clients, in another run.*give the run another seed"):
        run(out=str(tmp_path / "again"))
    if signed:
        # Nobody was even asked to reveal.
        assert "reveal" not in [kind(message) for message in grid.sent[sent:]]
    grid.away, grid.meddle = {13}, lambda node, reply: reply
    _, run, _ = site({**tree, **changes, "seed": 8}, grid)
    run(out=str(tmp_path / "other"))


def test_a_sum_of_no_updates_says_that_resuming_does_not_help(tiny_recipe, tmp_path, site, monkeypatch):  # noqa: F811
    tree, _, grid = secure(tiny_recipe, tmp_path, rounds=1)
    monkeypatch.setattr("fedsrd.federation.sum_codec.packed.pack", lambda vector, layout: pack(vector + 31, layout))
    _, run, _ = site(tree, grid)
    for again in (False, True):
        with pytest.raises(FederationError, match="nobody can tell who; .*resuming does not help"):
            run(resume=again)
    assert len(records(tmp_path / "run")) == 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("before", [True, False])
def test_a_server_that_is_killed_at_any_phase_goes_on(tiny_recipe, tmp_path, site, phase, before):  # noqa: F811
    tree, clear, grid = secure(tiny_recipe, tmp_path, signed=True)
    in_one_process(clear, tmp_path / "calm")
    _, run, _ = site(tree, grid)
    count = 0
    answer = grid.app_reply

    def dying(message, node):
        nonlocal count
        if kind(message) == phase:
            count += 1
            if count == 6 and before:
                raise KeyboardInterrupt
        reply = answer(message, node)
        if kind(message) == phase and count == 6:
            count += 1
            raise KeyboardInterrupt
        return reply

    grid.app_reply = dying
    with pytest.raises(KeyboardInterrupt):
        run()
    grid.app_reply = answer
    run(resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "calm")


def test_swapped_keys_are_found_by_every_site_and_nothing_masked_is_sent(tiny_recipe, tmp_path, site):  # noqa: F811
    """A server that puts its own keys in a site's place: sites that know their peers refuse."""
    tree, _, grid = secure(tiny_recipe, tmp_path, signed=True, rounds=1, attempts=1)
    _, run, _ = site(tree, grid)
    push = grid.push_messages

    def lying(messages):
        changed = []
        for message in messages:
            envelope = envelope_of(message.content)
            if kind(message) == "shares":
                roster = json.loads(envelope.payload)
                for keys in roster["keys"]:
                    if keys["name"] == "c2" and json.loads(envelope.text)["name"] != "c2":
                        keys["mask_key"] = roster["keys"][0]["seal_key"][:-6] + "AAAAA="
                message.content.clear()
                message.content.update(content_of(Envelope(envelope.text, json.dumps(roster).encode())))
            changed.append(message)
        return push(changed)

    grid.push_messages = lying
    with pytest.raises(FederationError, match="the keys of c2 are not signed by it for this session"):
        run()
    assert "train" not in [kind(message) for message in grid.sent]


def test_a_server_that_asks_for_no_signatures_gets_none_from_sites_that_know_their_peers(
    tiny_recipe,
    tmp_path,
    site,  # noqa: F811
):
    tree, _, grid = secure(tiny_recipe, tmp_path, signed=True, rounds=1, attempts=1)
    for entry in tree["clients"]:
        entry.pop("key")
    _, run, _ = site(tree, grid)
    with pytest.raises(FederationError, match="a session without signatures, though this site knows the others' keys"):
        run()


def test_a_site_that_masks_alone_refuses_a_run_in_the_clear(tiny_recipe, tmp_path, site):  # noqa: F811
    tree, _, grid = secure(tiny_recipe, tmp_path, rounds=1, threshold=4)
    (tmp_path / "rules.toml").write_text("[rules]\nsecure_aggregation = true\n")
    grid.configs[11]["rules"] = str(tmp_path / "rules.toml")
    _, run, _ = site(tree, grid)
    run()
    assert set(records(tmp_path / "run")[1].bytes_up) == {"c0", "c1", "c2", "c3"}
    tree.pop("privacy")
    _, run, _ = site({**tree, "name": "clear"}, grid, out=str(tmp_path / "clear"))
    run()
    (record,) = records(tmp_path / "clear")[1:]
    assert "rules.secure_aggregation" in record.rejected["c1"]


def test_clients_join_and_leave_between_rounds(tiny_recipe, tmp_path, site):  # noqa: F811
    tree, _, grid = secure(tiny_recipe, tmp_path, rounds=3, threshold=3)
    tree["participation"] = {"deadline": 1.0, "minimum": 3}
    grid.away = {13}

    def meddle(node, reply):
        count = sum(kind(message) == "reveal" for message in grid.sent)
        grid.away = {13} if count < 3 else {10}
        return reply

    grid.meddle = meddle
    _, run, _ = site(tree, grid)
    run()
    one, two, _ = records(tmp_path / "run")[1:]
    assert set(one.bytes_up) == {"c0", "c1", "c2"}
    assert set(two.bytes_up) == {"c1", "c2", "c3"}
    assert {line["digest"] for line in events(tmp_path / "run", "settled")} == {records(tmp_path / "run")[-1].digest}


def test_noise_comes_from_secrets_of_the_sites(tiny_recipe, tmp_path, site):  # noqa: F811
    """The same recipe at other sites has other noise, and says the same promise."""
    tree, _, grid = secure(tiny_recipe, tmp_path, rounds=1)
    tree["method"], tree["wire"] = {"name": "fedavg"}, {"sum": {}}
    tree["privacy"]["clients"] = {"noise_multiplier": 1.0, "clip": 0.1}
    _, run, _ = site(tree, grid)
    one = run()
    for config in grid.configs.values():
        config["state"] += "-other"
    other = run(out=str(tmp_path / "other"))
    assert one.digest != other.digest
    assert one.privacy_of_clients == other.privacy_of_clients
    assert one.privacy_of_clients.epsilon > 0


@pytest.mark.parametrize("what", ["steps", "training", "method"])
def test_a_server_that_tells_sites_different_things_has_no_update_of_theirs(tiny_recipe, tmp_path, site, what):  # noqa: F811
    """Steps so large, or training so slow, that all but one client would send zeros: the sum would be that one's."""
    tree, _, grid = secure(tiny_recipe, tmp_path, signed=True, rounds=1, attempts=1)
    _, run, _ = site(tree, grid)
    push = grid.push_messages

    def lying(messages):
        for message in messages:
            envelope = envelope_of(message.content)
            if kind(message) == "train":
                told = json.loads(envelope.text)
                if told["name"] != "c2":
                    if what == "steps":
                        told["sum"]["steps"] = [0x5000] * len(told["sum"]["steps"])
                    elif what == "training":
                        told["job"]["recipe"]["training"]["learning_rate"] = 1e-12
                    else:
                        told["job"]["method"]["decay"] = 0.5
                message.content.clear()
                message.content.update(content_of(Envelope(json.dumps(told), envelope.payload)))
        return push(messages)

    grid.push_messages = lying
    with pytest.raises(FederationError, match="1 of at least 3 clients.*other weights, steps, training or noise"):
        run()
    assert "reveal" not in [kind(message) for message in grid.sent]

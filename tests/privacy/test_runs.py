"""Whole runs under differential privacy on the tiny model, in one process and across sites."""

import io
import json
import math
import stat

import pytest
import tomli_w
from grid import ToyGrid
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation import local, setup, starting
from fedsrd.flower.client_app import app as client_app
from fedsrd.flower.server import serve
from fedsrd.privacy import ledger
from fedsrd.privacy.accounting import Event, epsilon
from fedsrd.report.page.write import report
from fedsrd.report.screen import Screen
from fedsrd.runs.folder import RunFolder

STEPS, ROUNDS, RATE = 2, 3, 4 / 12


@pytest.fixture
def tree(tiny_recipe):
    tiny_recipe["method"] = {"name": "fedavg"}
    tiny_recipe["evaluation"] = {"sets": []}
    tiny_recipe["privacy"] = {"examples": {"noise_multiplier": 1.0, "clip": 0.5}}
    return tiny_recipe


def run(tree, path, *, resume=False):
    observer = Watch()
    prepared = setup.prepare(recipes.parse(tree), RunFolder(path), resume=resume, observer=observer)
    return local.run(prepared, observer), observer


def spent(rounds, noise=1.0):
    return epsilon([Event(noise_multiplier=noise, sampling_rate=RATE, steps=STEPS * rounds)], 1e-5)


def test_a_run_says_what_it_has_given_away_round_by_round(tree, tmp_path):
    summary, _ = run(tree, tmp_path / "run")
    records = RunFolder(tmp_path / "run").records()
    assert records[0].privacy == {}
    for number, record in enumerate(records[1:], 1):
        for client in ("left", "right"):
            assert record.privacy[client].epsilon == pytest.approx(spent(number), rel=1e-5)
            assert record.privacy[client].delta == 1e-5
            assert math.isnan(record.train_loss_by_client[client])
    assert summary.privacy == records[-1].privacy
    assert RunFolder(tmp_path / "run").summary().privacy == summary.privacy
    assert stat.S_IMODE((tmp_path / "run" / "privacy").stat().st_mode) == 0o700
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"({spent(ROUNDS):.3g}, 1e-05)-differential privacy of examples at left, right" in card
    text = report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "differential privacy of examples at left, right" in text
    assert f"<td>{spent(2):.3f}</td>" in text
    # And repeats itself.
    again, _ = run(tree, tmp_path / "again")
    assert again.digest == summary.digest


def test_a_run_that_was_killed_in_a_round_continues_with_the_same_bytes_and_pays_once(tree, tmp_path, monkeypatch):
    calm, _ = run(tree, tmp_path / "calm")
    close = starting.Rounds.close
    calls = []

    def killed(self, answers):
        calls.append(len(answers))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return close(self, answers)

    monkeypatch.setattr(starting.Rounds, "close", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tree, tmp_path / "run")
    # Trained twice in the second round, which nobody has seen: written down.
    assert ledger.read(tmp_path / "run" / "privacy" / "left").rounds == 2
    monkeypatch.undo()
    summary, _ = run(tree, tmp_path / "run", resume=True)
    assert summary.digest == calm.digest
    assert summary.privacy == calm.privacy
    assert ledger.read(tmp_path / "run" / "privacy" / "left").rounds == ROUNDS


def test_an_epsilon_sets_the_noise_and_is_kept(tree, tmp_path):
    tree["privacy"] = {"examples": {"epsilon": 4.0}}
    summary, _ = run(tree, tmp_path / "run")
    for found in summary.privacy.values():
        assert 3.8 < found.epsilon <= 4.0


@pytest.mark.parametrize("method", ["fedsrd", "ffa-lora", "scaffold", "fedprox", "feddyn", "cyclic"])
def test_methods_go_with_it(tree, tmp_path, method):
    tree["method"] = {"name": method}
    tree["rounds"] = 2
    summary, _ = run(tree, tmp_path / "run")
    assert summary.privacy["left"].epsilon == pytest.approx(spent(2), rel=1e-5)


def test_what_cannot_be_promised_is_refused_before_anything_starts(tree, tmp_path):
    def refused(match, **change):
        changed = json.loads(json.dumps(tree))
        for key, value in change.items():
            changed[key] = {**changed.get(key, {}), **value} if isinstance(value, dict) else value
        with pytest.raises(RecipeError, match=match):
            setup.check(recipes.parse(changed), Watch(), setup.Assets())

    refused("packing = true", training={"packing": True})
    refused("gradient_checkpointing = true", model={"gradient_checkpointing": True})
    refused("no client has a budget", method={"name": "centralised"})
    tree["privacy"] = {"clients": {"noise_multiplier": 1.0}}
    refused("not their sum", method={"name": "flora"})
    refused("which elements a client chooses", method={"name": "fedavg", "sparsifier": "magnitude"})


def test_noise_for_whole_clients(tree, tmp_path):
    tree["privacy"] = {"clients": {"noise_multiplier": 2.0, "clip": 0.05}}
    tree["method"] = {"name": "fedavg", "sparsifier": "cyclic"}
    summary, _ = run(tree, tmp_path / "run")
    expected = epsilon([Event(noise_multiplier=2.0, sampling_rate=1.0, steps=ROUNDS)], 1e-5)
    assert summary.privacy_of_clients.epsilon == pytest.approx(expected, rel=1e-5)
    assert summary.privacy == {}
    tree["privacy"]["clients"]["noise_multiplier"] = 0.06
    quiet, _ = run(tree, tmp_path / "quiet")
    assert quiet.digest != summary.digest
    # In one process the noise follows from the seed.
    again, _ = run(tree, tmp_path / "again")
    assert again.digest == quiet.digest


# Across sites.


@pytest.fixture
def site(tree, tmp_path):
    """Runs the recipe across two sites; `rules` by client, as its own file has them."""
    state = tmp_path / "state"
    nodes = [{"client": c["name"], "data": c["data"]["source"], "state": str(state)} for c in tree["clients"]]
    grid = ToyGrid(client_app, nodes)

    def go(out="run", rules=None, files=None, **settings):
        for node in nodes:
            node.pop("rules", None)
            if node["client"] in (files or {}):
                node["rules"] = str(files[node["client"]])
            if node["client"] in (rules or {}):
                own = tmp_path / f"{node['client']}-site.toml"
                own.write_text(tomli_w.dumps({"privacy": rules[node["client"]]}))
                node["rules"] = str(own)
        file = tmp_path / "recipe.toml"
        file.write_text(tomli_w.dumps(tree))
        given = {"recipe": "" if settings.get("resume") else str(file), "out": str(tmp_path / out), **settings}
        return serve(grid, given, Screen(file=io.StringIO(), width=100))

    go.state, go.grid = state, grid
    return go


def test_across_sites_noise_is_no_function_of_the_recipe(tree, tmp_path, site):
    calm, _ = run(tree, tmp_path / "calm")
    one = site("one")
    assert one.privacy == calm.privacy
    assert one.digest != calm.digest
    for client in ("left", "right"):
        folder = site.state / "privacy" / client
        assert stat.S_IMODE((folder / "noise.key").stat().st_mode) == 0o600
        assert ledger.read(folder).rounds == ROUNDS
    # Another federation of the same recipe: the same query from the same state has the same answer, and counts.
    two = site("two")
    assert two.digest == one.digest
    assert ledger.read(site.state / "privacy" / "left").rounds == 2 * ROUNDS


def test_a_site_refuses_what_its_rules_do_not_allow_before_it_trains_and_whatever_the_federation(tree, tmp_path, site):
    tree["participation"] = {"attempts": 1}
    rules = {"left": {"epsilon": spent(ROUNDS + 1) + 0.01, "delta": 1e-5}}
    site("one", rules)
    tree["seed"] = 5
    two = site("two", rules)
    records = RunFolder(tmp_path / "two").records()
    assert set(records[1].bytes_up) == {"left", "right"}
    for record in records[2:]:
        assert set(record.bytes_up) == {"right"}
        assert "the site's rules do not allow" in record.rejected["left"]
        assert set(record.privacy) == {"right"}
    assert two.privacy["left"].epsilon == pytest.approx(spent(1), rel=1e-5)
    assert ledger.read(site.state / "privacy" / "left").rounds == ROUNDS + 1


def test_a_recipe_without_privacy_is_refused_or_trained_with_the_sites_own_noise(tree, tmp_path, site):
    del tree["privacy"]
    rules = {
        "left": {"epsilon": 1.0, "delta": 1e-5},
        "right": {"epsilon": 100.0, "delta": 1e-6, "noise_multiplier": 3.0, "clip": 0.1},
    }
    summary = site("one", rules)
    record = RunFolder(tmp_path / "one").records()[-1]
    assert "the recipe has no [privacy.examples]" in record.rejected["left"]
    assert not (site.state / "privacy" / "left" / "ledger.json").exists()
    assert summary.privacy["right"].delta == 1e-6
    (event,) = ledger.read(site.state / "privacy" / "right").events()
    assert event == Event(noise_multiplier=3.0, sampling_rate=RATE, steps=STEPS * ROUNDS)


def test_a_damaged_ledger_at_a_site_trains_nothing(tree, tmp_path, site):
    site("one")
    file = site.state / "privacy" / "left" / "ledger.json"
    file.write_text("{}")
    site("two")
    for record in RunFolder(tmp_path / "two").records()[1:]:
        assert "ledger is damaged" in record.rejected["left"]
    assert file.read_text() == "{}"
    tree["participation"] = {"attempts": 1, "minimum": 2}
    with pytest.raises(FederationError, match="ledger is damaged"):
        site("three")


def test_a_server_that_lowers_the_noise_gets_the_sites(tree, site):
    tree["privacy"]["examples"]["noise_multiplier"] = 0.05
    rules = {name: {"epsilon": 1e4, "delta": 1e-5, "noise_multiplier": 2.0} for name in ("left", "right")}
    summary = site("one", rules)
    assert summary.privacy["left"].epsilon == pytest.approx(spent(ROUNDS, 2.0), rel=1e-5)
    assert summary.privacy["right"].epsilon == pytest.approx(spent(ROUNDS, 2.0), rel=1e-5)


def test_the_servers_noise_on_clients_is_from_a_secret_in_its_folder(tree, tmp_path, site):
    tree["privacy"] = {"clients": {"noise_multiplier": 1.0, "clip": 0.05}}
    calm, _ = run(tree, tmp_path / "calm")
    one, two = site("one"), site("two")
    assert len({calm.digest, one.digest, two.digest}) == 3
    assert stat.S_IMODE((tmp_path / "one" / "state" / "noise.key").stat().st_mode) == 0o600
    assert one.privacy_of_clients == calm.privacy_of_clients


def test_a_site_that_keeps_its_number_of_examples_keeps_its_epsilon(tree, tmp_path, site):
    keeps = tmp_path / "keeps.toml"
    keeps.write_text(tomli_w.dumps({"rules": {"tell": {"examples": False}}}))
    summary = site("one", files={"left": keeps})
    assert set(summary.privacy) == {"right"}
    assert ledger.read(site.state / "privacy" / "left").rounds == ROUNDS

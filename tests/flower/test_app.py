"""The Flower app on an in-process grid: the same bytes as a run in one process, whoever comes, goes, fails or lies."""

import io
import json

import pytest
import tomli_w
from grid import ToyGrid
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.federation import local, setup
from fedsrd.flower.client_app import app as client_app
from fedsrd.flower.records import HEADER, PAYLOADS
from fedsrd.flower.server import serve
from fedsrd.report.screen import Screen
from fedsrd.runs.folder import RunFolder


def adapter_bytes(path):
    return (path / "adapter" / "adapter_model.safetensors").read_bytes()


def records(path):
    return RunFolder(path).records()


def events(path, kind):
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.fixture
def site(tiny_recipe, tmp_path):
    """Writes the recipe, and gives a grid of its clients and what serves on it."""
    state = tmp_path / "state"

    def make(tree=None, grid=None, **config):
        tree = tree or tiny_recipe
        file = tmp_path / "recipe.toml"
        file.write_text(tomli_w.dumps(tree))
        nodes = [
            {"client": entry["name"], "data": entry["data"]["source"], "state": str(state)} for entry in tree["clients"]
        ]
        grid = grid or ToyGrid(client_app, nodes)
        console = Screen(file=io.StringIO(), width=100)

        def run(**more):
            settings = {"recipe": str(file), "out": str(tmp_path / "run"), **config, **more}
            if settings.get("resume"):
                settings["recipe"] = ""
            return serve(grid, settings, console)

        return grid, run, console

    return make


def in_one_process(tree, path):
    prepared = setup.prepare(recipes.parse(tree), RunFolder(path), resume=False, observer=Watch())
    return local.run(prepared, Watch())


@pytest.mark.parametrize("method", ["fedsrd", "fedavg", "flora", "flasc"])
def test_the_same_bytes_as_in_one_process(method, tiny_recipe, tmp_path, site):
    tiny_recipe["method"] = {"name": method}
    tiny_recipe["wire"] = {"uplink": {"values": "int8"}, "downlink": {"values": "int8"}}
    calm = in_one_process(tiny_recipe, tmp_path / "calm")
    _, run, _ = site()
    summary = run()
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")
    for key in ("digest", "bytes_up", "bytes_down", "clients", "final", "ratio_to_dense_float32"):
        assert getattr(summary, key) == getattr(calm, key), key
    for one, other in zip(records(tmp_path / "run")[1:], records(tmp_path / "calm")[1:], strict=True):
        assert one.digest == other.digest
        assert one.bytes_up == other.bytes_up
        assert one.eval == other.eval
    # And every site ends with the adapter on its own disk.
    for client in ("left", "right") if method != "flasc" else ():
        (found,) = (tmp_path / "state").glob(f"*/{client}")
        assert adapter_bytes(found) == adapter_bytes(tmp_path / "run")
        assert (found / "adapter" / "adapter_config.json").is_file()


def crowd(tree, tmp_path, count, **participation):
    """The recipe with more clients."""
    tree["clients"] = []
    for place in range(count):
        rows = [{"instruction": f"add {i} and {place}", "response": f"it is {i + place}"} for i in range(8)]
        file = tmp_path / f"c{place}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tree["clients"].append({"name": f"c{place}", "data": {"source": str(file)}})
    tree["training"] |= {"steps": 1, "learning_rate": 1e-3}
    # A fifth of a tiny B is nearly singular.
    tree["method"] = {"name": "fedsrd", "damping": 0.1}
    tree["evaluation"]["sets"] = []
    tree["participation"] = participation
    return tree


def test_a_part_of_the_clients_a_round_gives_the_same_bytes_too(tiny_recipe, tmp_path, site):
    tree = {**crowd(tiny_recipe, tmp_path, 6, fraction=0.34, minimum=2), "rounds": 6}
    calm = in_one_process(tree, tmp_path / "calm")
    _, run, _ = site(tree)
    summary = run()
    assert summary.digest == calm.digest
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")
    assert summary.bytes_up == calm.bytes_up
    settled = events(tmp_path / "run", "settled")
    assert {line["digest"] for line in settled} == {summary.digest}
    assert len(settled) == 6


def test_one_that_was_away_gets_what_it_missed_and_one_that_joins_gets_all(tiny_recipe, tmp_path, site):
    tree = {**crowd(tiny_recipe, tmp_path, 4, minimum=2, deadline=1.0), "rounds": 6}
    grid, run, _console = site(tree)
    grid.away = {12, 13}  # c2 leaves after round 1 and is back in round 4; c3 joins in round 5
    seen = []

    def meddle(node, reply):
        done = len(records(tmp_path / "run"))
        seen.append((done, node))
        grid.away = {1: {13}, 2: {12, 13}, 3: {12, 13}, 4: {13}}.get(done, set())
        return reply

    grid.meddle = meddle
    summary = run()
    asked = [(line["round"], line["client"]) for line in events(tmp_path / "run", "asked")]
    assert (4, "c2") in asked or (5, "c2") in asked
    assert (6, "c3") in asked
    assert {line["digest"] for line in events(tmp_path / "run", "settled")} == {summary.digest}
    assert {line["client"] for line in events(tmp_path / "run", "settled")} == {"c0", "c1", "c2", "c3"}
    assert events(tmp_path / "run", "left")


def test_failures_are_told_and_the_run_goes_on(tiny_recipe, tmp_path, site):
    tree = crowd(tiny_recipe, tmp_path, 4, deadline=1.0)
    (tmp_path / "c1.jsonl").write_text("")
    grid, run, console = site(tree)
    grid.meddle = lambda node, reply: (
        None if node == 12 and "task" in str(reply.content) + "answer" and len(grid.sent) > 4 else reply
    )

    def tamper(node, reply):
        if reply.has_error():
            return reply
        text = reply.content.config_records[HEADER]["json"]
        if node == 12 and '"kind":"train-reply"' in text:
            return None
        if node == 13 and '"kind":"train-reply"' in text:
            array = reply.content[PAYLOADS]["bytes"]
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
        return reply

    grid.meddle = tamper
    run()
    for record in records(tmp_path / "run")[1:]:
        assert list(record.bytes_up) == ["c0"]
        assert set(record.rejected) == {"c1", "c2", "c3"}
        assert "is empty" in record.rejected["c1"]
        # Which folder it lies in is the site's own business; its log has it.
        assert record.rejected["c1"].startswith("c1: c1.jsonl is empty")
        assert record.rejected["c2"] == "no answer within 1 s"
        assert "checksum" in record.rejected["c3"]
    text = console.file.getvalue()
    assert "left out" in text
    assert "silent: no answer within 1 s" in text
    assert str(tmp_path / "c1.jsonl") not in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_client_says_is_shown_and_does_nothing(tiny_recipe, tmp_path, site, terminal):
    """An honest site's path that looks like markup, and a reason of megabytes that would clear the screen."""
    tree = crowd(tiny_recipe, tmp_path, 3)
    tree["rounds"] = 1
    grid, run, console = site(tree)
    console._force_terminal = terminal
    grid.configs[11]["data"] = "/nowhere/[/srv].jsonl"
    said = "\x1b[2J\x1b]8;;https://example.org\x07[/x]\nmore " + "x" * 3_000_000

    def lie(node, reply):
        if node == 12 and not reply.has_error() and '"kind":"train-reply"' in reply.content[HEADER]["json"]:
            told = {"kind": "train-reply", "name": "c2", "round": 1, "held": 0, "failure": said}
            reply.content[HEADER]["json"] = json.dumps(told)
        return reply

    grid.meddle = lie
    run()
    rejected = records(tmp_path / "run")[1].rejected
    # The folder is the site's own business.
    assert rejected["c1"] == "c1: srv].jsonl: no such file or folder"
    assert rejected["c2"].startswith("�[2J�]8;;https://example.org�[/x] more xxx")
    assert len(rejected["c2"]) == 300
    assert {line["reason"] for line in events(tmp_path / "run", "failed")} == set(rejected.values())
    text = console.file.getvalue()
    assert "srv].jsonl: no such file or folder" in " ".join(text.split())
    assert not any(code in text for code in ("\x1b[2J", "\x1b]8", "\x07"))
    assert all((tmp_path / "run" / name).stat().st_size < 20_000 for name in ("rounds.jsonl", "log.jsonl"))


def test_too_few_answers_repeat_the_round_and_then_end_the_run_with_the_state_kept(tiny_recipe, tmp_path, site):
    from fedsrd.errors import FederationError

    tree = {**crowd(tiny_recipe, tmp_path, 3, minimum=2, deadline=0.3, attempts=2), "rounds": 3}
    in_one_process(tree, tmp_path / "calm")
    grid, run, console = site(tree)
    asked = []

    def slow_once(node, reply):
        if node == 12 or reply.has_error() or '"round":2' not in reply.content[HEADER]["json"]:
            return reply
        asked.append(node)
        return None if len(asked) <= 2 else reply

    grid.meddle = slow_once
    run()
    assert [record.attempts for record in records(tmp_path / "run")[1:]] == [1, 2, 1]
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")
    assert "1 of at least 2 clients sent a usable update" in console.file.getvalue()
    # And where it stays so, the run ends; a later one goes on from the last complete round.
    asked.clear()
    grid.meddle = lambda node, reply: None if node != 12 and asked.append(node) is None and len(asked) > 4 else reply
    with pytest.raises(FederationError, match="round 2: 1 of at least 2 clients"):
        run(out=str(tmp_path / "other"))
    grid.meddle = lambda node, reply: reply
    run(out=str(tmp_path / "other"), resume=True)
    assert adapter_bytes(tmp_path / "other") == adapter_bytes(tmp_path / "calm")


@pytest.mark.parametrize("file", ["rounds.jsonl", "global.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("which", [2, 3])
def test_a_server_that_dies_between_any_two_files_goes_on(tiny_recipe, tmp_path, site, monkeypatch, file, which):
    from fedsrd.runs import folder as runfolder

    in_one_process(tiny_recipe, tmp_path / "calm")
    _, run, _ = site()
    write, seen = runfolder.write_atomically, []

    def crash(path, content):
        write(path, content)
        seen.extend([path] if path.name == file and "run" in path.parts else [])
        if len(seen) == which:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            run()
    run(resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_dies_around_its_save_goes_on(tiny_recipe, tmp_path, site, monkeypatch, when):
    """Killed before or after its state is replaced: the round is repeated, nothing is applied twice or skipped."""
    from fedsrd.federation.remote import replica

    tiny_recipe["method"] = {"name": "flasc"}
    tiny_recipe["participation"] = {"minimum": 2}
    in_one_process(tiny_recipe, tmp_path / "calm")
    _, run, _ = site()
    write, seen = replica.write_atomically, []

    def crash(path, content):
        seen.append(path)
        if when == "after":
            write(path, content)
        if len(seen) in (2, 5):
            raise RuntimeError("killed")
        if when == "before":
            write(path, content)

    monkeypatch.setattr(replica, "write_atomically", crash)
    run()
    assert len(seen) > 6
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")


def test_a_site_that_lost_or_damaged_its_disk_is_made_whole(tiny_recipe, tmp_path, site):
    tiny_recipe |= {"rounds": 5, "method": {"name": "fedavg"}, "participation": {"minimum": 2}}
    in_one_process(tiny_recipe, tmp_path / "calm")
    grid, run, console = site()
    done = set()

    def meddle(node, reply):
        number = len(records(tmp_path / "run")) if (tmp_path / "run" / "rounds.jsonl").exists() else 0
        if number in (2, 4) and number not in done and node == 11:
            done.add(number)
            (file,) = (tmp_path / "state").glob("*/left/replica.safetensors")
            file.unlink() if number == 2 else file.write_bytes(file.read_bytes()[:-1] + b"x")
        return reply

    grid.meddle = meddle
    run()
    assert done == {2, 4}
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")
    (log,) = (tmp_path / "state").glob("*/left/log.jsonl")
    assert '"damaged"' in log.read_text()
    assert log.with_name("replica.damaged").is_file()
    # What a method keeps at the client does not come back: the server is told, and its record says so.
    warned = " ".join(console.file.getvalue().split())
    assert "replica.safetensors is damaged, the server sends the whole state" in warned


def test_a_server_that_was_put_back_to_an_older_backup_goes_on(tiny_recipe, tmp_path, site):
    import shutil

    in_one_process(tiny_recipe, tmp_path / "calm")
    grid, run, console = site()
    backup = {}

    def meddle(node, reply):
        state = tmp_path / "run" / "state" / "global.safetensors"
        if state.exists() and len(records(tmp_path / "run")) == 2 and not backup:
            shutil.copytree(tmp_path / "run", tmp_path / "backup")
            backup["made"] = True
        return reply

    grid.meddle = meddle
    run()
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(tmp_path / "backup", tmp_path / "run")
    run(resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")
    assert "not this run's" in console.file.getvalue()


def test_one_site_that_cannot_follow_does_not_spoil_the_end_for_all(tiny_recipe, tmp_path, site):
    grid, run, console = site()

    def meddle(node, reply):
        if node == 11 and not reply.has_error() and '"kind":"sync-reply"' in reply.content[HEADER]["json"]:
            reply.content[HEADER]["json"] = json.dumps(
                {"kind": "sync-reply", "name": "right", "held": -1, "digest": "", "failure": "the disk is full"}
            )
        return reply

    grid.meddle = meddle
    summary = run()
    assert summary.rounds == 3
    assert (tmp_path / "run" / "summary.json").is_file()
    assert "not at the last version: right" in console.file.getvalue()
    assert "right the disk is full" in console.file.getvalue()


def test_a_site_that_was_killed_while_it_was_greeted_is_greeted_again(tiny_recipe, tmp_path, site):
    from flwr.app import Error, Message

    tiny_recipe["participation"] = {"minimum": 2}
    in_one_process(tiny_recipe, tmp_path / "calm")
    grid, run, _ = site()
    killed = []

    def meddle(node, reply):
        if node == 11 and not killed:
            killed.append(node)
            return Message(Error(code=3, reason="Message Unavailable"), reply_to=grid.sent[-1])
        return reply

    grid.meddle = meddle
    run()
    assert killed
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "calm")

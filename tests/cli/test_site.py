"""What a security officer sees of a site: messages, exit codes, and no more than what is there."""

import json

import pytest
from asking import Asking
from typer.testing import CliRunner

from fedsrd.cli import app
from fedsrd.errors import FedSRDError
from fedsrd.federation.remote.audit import Audit


def site(*arguments):
    return CliRunner().invoke(app, ["site", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def state(tmp_path):
    """A site that was greeted, sent two updates, and refused one."""
    asking = Asking(tmp_path / "site", '[rules]\nrounds = 2\nmethods = ["fedavg"]\n[rules.tell]\nexamples = false')
    asking.hello()
    asking.round()
    asking.round()
    asking.train(**{"job.method": {"name": "ffa-lora"}})
    return tmp_path / "site"


def test_the_log_shows_what_left_sums_and_the_chain(state):
    shown = site("log", state)
    assert shown.exit_code == 0, shown.output
    for expected in (
        "greeting",
        "update",
        "no update",
        "loss 1; seconds 0.",
        "methods",
        "asked: method ffa-lora",
        "chain is whole",
    ):
        assert expected in shown.output
    assert "examples" not in shown.output
    assert site("log", state / "audit").output == shown.output
    short = site("log", state, "--verify")
    assert short.exit_code == 0
    assert "greeting" not in short.output
    assert "aaaaaaaaaaaaaaaa" in short.output


def test_the_log_as_json(state):
    shown = CliRunner().invoke(app, ["site", "log", str(state), "--json"])
    tree = json.loads(shown.stdout)
    entries = list(Audit(state / "audit").entries())
    assert tree["chain"] == {"whole": True, "problems": [], "lines": 4, "hash": entries[-1].hash}
    assert tree["lines"] == [entry.line.model_dump() for entry in entries]
    run = tree["runs"]["a" * 16]
    assert (run["messages"], run["updates"], run["rounds"]) == (4, 2, [1, 2])
    assert run["bytes"] == sum(entry.line.bytes for entry in entries)


def test_a_log_that_was_changed_ends_with_an_exit_code(state):
    (file,) = Audit(state / "audit").files()
    lines = file.read_bytes().splitlines(keepends=True)
    noted = list(Audit(state / "audit").entries())[-1].hash
    file.write_bytes(b"".join([lines[0], *lines[2:]]))
    for arguments in ((), ("--verify",), ("--json",)):
        shown = site("log", state, *arguments)
        assert shown.exit_code == 1
        assert "line" in shown.output
    assert "BROKEN" in site("log", state).output
    # A cut at the end: the chain is whole, but not to who has kept a hash.
    file.write_bytes(b"".join(lines[:-1]))
    assert site("log", state, "--verify").exit_code == 0
    shown = site("log", state, "--verify", "--after", noted)
    assert shown.exit_code == 1
    assert "no line has the hash" in shown.output
    file.write_bytes(b"".join(lines) + b"what\n")
    shown = site("log", state)
    assert shown.exit_code == 1
    assert "damaged at" in shown.output
    file.write_bytes(b"".join(lines) + b'{"num')
    shown = site("log", state)
    assert shown.exit_code == 0
    assert "its message was not sent" in shown.output


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_log_is_refused(made, tmp_path):
    folder = tmp_path / "x"
    if made:
        folder.mkdir()
    shown = site("log", folder)
    assert isinstance(shown.exception, FedSRDError)
    assert "no audit log; expected a site's state folder" in str(shown.exception)
    assert site("log", tmp_path, "--after", "xyz").exit_code == 2


def test_text_from_a_server_cannot_act_on_the_terminal(tmp_path):
    asking = Asking(tmp_path / "site", '[rules]\nmethods = ["fedavg"]')
    asking.train(**{"job.method": {"name": "\x1b[2J[bold]x"}, "job.recipe.model.id": "\x1b]8;;http://evil\x07" * 99})
    output = site("log", tmp_path / "site").output
    assert "\x1b" not in output
    assert "[bold]x" in output


def test_rules_in_plain_words(tmp_path):
    file = tmp_path / "site.toml"
    file.write_text(
        '[rules]\nrounds = 20\nmodels = ["org/model"]\n[rules.tell]\nloss = false\n'
        "[privacy]\nepsilon = 3.0\ndelta = 1e-5\n"
    )
    shown = site("rules", file)
    assert shown.exit_code == 0, shown.output
    for expected in (
        "base models: org/model",
        "methods: any",
        "at most 20 rounds are trained on this data, in all runs together",
        "loss: not told",
        "examples: told",
        "epsilon 3 at delta 1e-05",
        "may see this site's updates one by one",
    ):
        assert expected in shown.output
    file.write_text("[rules]\nrounds = 0")
    shown = site("rules", file)
    assert "rules.rounds = 0" in str(shown.exception)

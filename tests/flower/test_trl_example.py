"""examples/flower-trl: an existing Flower project with TRL's SFTTrainer, with FedAvg as it was, and with FedSRD."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from grid import ToyGrid

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower-trl"
SETTINGS = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def run(folder, state, monkeypatch, **settings):
    """The app in a folder, its ClientApp and its ServerApp in this process."""
    pytest.importorskip("trl")
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "notes"]:
        monkeypatch.delitem(sys.modules, name)
    from notes.client_app import app as client
    from notes.server_app import app as server

    config = {**SETTINGS, "rounds": 2, "steps": 2, **settings}

    def with_config(message, context):
        return client(message, Context(1, context.node_id, context.node_config, context.state, config))

    nodes = [{"partition-id": place, "num-partitions": 2, "state": str(state)} for place in range(2)]
    grid = ToyGrid(with_config, nodes)
    server(grid, Context(1, 1, {}, RecordDict(), config))
    return grid


def rounds(output):
    return [line for line in output.splitlines() if line.startswith("round")]


def size(grid):
    """Bytes of arrays that were sent to clients, train and evaluate messages alike."""
    return sum(
        len(array.data)
        for message in grid.sent
        for record in message.content.array_records.values()
        for array in record.values()
    )


def changes():
    """What the README says was changed: by file, the lines that went and those that came."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found, lines = {}, []
    for line in diff.splitlines():
        if line.startswith("--- "):
            lines = found.setdefault(line.removeprefix("--- "), [])
        else:
            lines.append((line[0], line[1:]))
    return found


def test_four_lines_are_fedsrds_and_the_readme_shows_them():
    shown = [line for lines in changes().values() for sign, line in lines if sign == "+"]
    files = EXAMPLE.rglob("*.py")
    marked = [line for file in files for line in file.read_text().splitlines() if "# FedSRD" in line]
    assert sorted(marked) == sorted(shown)
    assert len(marked) == 4


def test_it_trains_evaluates_and_saves_an_adapter(tmp_path, monkeypatch, capsys):
    run(EXAMPLE, tmp_path / "state", monkeypatch, **{"save-to": str(tmp_path / "adapter")})
    assert [line.split(":")[0] for line in rounds(capsys.readouterr().out)] == ["round 1", "round 2"]
    from notes.tiny import tiny
    from peft import PeftModel

    assert PeftModel.from_pretrained(tiny()[0], tmp_path / "adapter").peft_config["default"].r == 8


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    kept = {"checkpoint": str(tmp_path / "kept")}
    run(EXAMPLE, tmp_path / "state", monkeypatch, rounds=1, **kept)
    grid = run(EXAMPLE, tmp_path / "state", monkeypatch, **kept)
    assert not any('"round":1' in message.content["fedsrd.header"]["json"] for message in grid.sent)
    torn = rounds(capsys.readouterr().out)[1:]
    run(EXAMPLE, tmp_path / "calm", monkeypatch)
    assert rounds(capsys.readouterr().out) == torn


def test_without_the_four_lines_it_is_fedavgs_project_and_sends_much_more(tmp_path, monkeypatch, capsys):
    plain = tmp_path / "plain"
    for file in EXAMPLE.rglob("*"):
        if file.suffix not in (".py", ".jsonl"):
            continue
        text, lines = file.read_text(), changes().get(str(file.relative_to(EXAMPLE)), [])
        for sign, line in lines:
            if sign == "+":
                assert f"{line}\n" in text
                # A line that came stands where the one that went stood, which begins alike; the mod's import had none.
                gone = [old for minus, old in lines if minus == "-" and old.split()[0] == line.split()[0]]
                text = text.replace(f"{line}\n", f"{gone[0]}\n" if gone else "")
        place = plain / file.relative_to(EXAMPLE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert "from fedsrd" not in "".join(file.read_text() for file in plain.rglob("*.py"))
    theirs = run(plain, tmp_path / "none", monkeypatch)
    assert len(rounds(capsys.readouterr().out)) == 2
    ours = run(EXAMPLE, tmp_path / "state", monkeypatch)
    assert size(ours) < size(theirs) / 3

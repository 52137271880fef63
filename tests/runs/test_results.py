"""Results of comparisons read back: those that are stored here, and those that are damaged."""

import json
from pathlib import Path

import pytest

from fedsrd.errors import RunFolderError
from fedsrd.runs.records import FORMAT
from fedsrd.runs.results import read_results, results_text

STORED = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["main", "ablation", "server-lr"])
def test_stored_results_from_before_formats_are_read_whole(name, tmp_path):
    file = STORED / f"embedded-{name}.json"
    found = read_results(file)
    tree = json.loads(file.read_text())
    assert "format" not in tree
    assert found.plain() == tree
    again = tmp_path / "results.json"
    again.write_text(results_text(found))
    assert read_results(again) == found
    assert json.loads(again.read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.update(format=FORMAT + 1, invented=1), "written by a newer fedsrd .*upgrade"),
        (lambda tree: tree.pop("seeds"), "seeds: missing; the file is not as fedsrd wrote it"),
        (lambda tree: tree["rows"][0]["own"].pop("mean"), "rows.0.own.mean: missing"),
        (lambda tree: tree["rows"][1].update(runs="many"), "rows.1.runs = 'many'"),
    ],
)
def test_what_is_wrong_is_named(change, says, tmp_path):
    tree = json.loads((STORED / "embedded-main.json").read_text())
    change(tree)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(RunFolderError, match=rf"results\.json: {says}"):
        read_results(file)

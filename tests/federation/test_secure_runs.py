"""Whole runs on the tiny model whose updates are integers: in the clear and masked, with the same states."""

import pytest
from test_run import run

from fedsrd.runs.records import read_rounds

METHODS = {
    "fedavg": ({"name": "fedavg"}, {}),
    "ffa-lora": ({"name": "ffa-lora"}, {}),
    "cyclic, ternary": (
        {"name": "cyclic", "period": 2, "period_a": 3, "server_feedback": "ef14"},
        {"levels": 1, "threshold": 1.6},
    ),
    "cyclic, momentum": ({"name": "cyclic", "momentum": 0.3}, {"levels": 7}),
    "fedsrd-e at clients": ({"name": "fedsrd-e", "decompose_at": "client", "sparsifier": "cyclic"}, {}),
}


def digests(path):
    return [record.digest for record in read_rounds(path / "rounds.jsonl")]


@pytest.mark.parametrize("row", METHODS)
def test_a_masked_run_has_the_states_of_one_in_the_clear(tiny_recipe, tmp_path, row):
    method, summing = METHODS[row]
    tiny_recipe["method"] = method
    tiny_recipe["wire"] = {"sum": summing}
    run(tiny_recipe, tmp_path / "clear")
    tiny_recipe["privacy"] = {"secure_aggregation": {"threshold": 2}}
    run(tiny_recipe, tmp_path / "masked")
    assert digests(tmp_path / "clear") == digests(tmp_path / "masked")
    clear, masked = (read_rounds(tmp_path / name / "rounds.jsonl")[1] for name in ("clear", "masked"))
    for client in ("left", "right"):
        assert 300 < masked.bytes_up[client] - clear.bytes_up[client] < 5000

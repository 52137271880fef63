"""Whole runs on the tiny model whose updates are integers: in the clear and masked, with the same states."""

import numpy as np
import pytest
from test_run import run

from fedsrd import rng
from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.sum_codec import SumCodec
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


def test_noise_is_shared_among_those_who_are_masked(tiny_recipe, tmp_path):
    """Only the sum has enough of it; the run repeats itself, and says what it promises."""
    tiny_recipe["method"] = {"name": "fedavg"}
    tiny_recipe["privacy"] = {
        "secure_aggregation": {"threshold": 2},
        "clients": {"noise_multiplier": 0.05, "clip": 0.2},
    }
    summary, _ = run(tiny_recipe, tmp_path / "one")
    run(tiny_recipe, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    tiny_recipe["privacy"]["clients"]["noise_multiplier"] = 10.0
    louder, _ = run(tiny_recipe, tmp_path / "louder")
    assert summary.privacy_of_clients.epsilon > 100 * louder.privacy_of_clients.epsilon
    assert louder.final.by_set["left"] > summary.final.by_set["left"]


def test_noise_shared_in_the_clear_is_refused(tiny_recipe, tmp_path):
    tiny_recipe["method"] = {"name": "fedavg"}
    tiny_recipe["wire"] = {"sum": {}}
    tiny_recipe["privacy"] = {"clients": {"noise_multiplier": 1.0}}
    with pytest.raises(RecipeError, match="shares of noise protect nobody where each update is seen"):
        run(tiny_recipe, tmp_path / "run")


@pytest.mark.parametrize("masked", [False, True])
def test_integers_that_no_update_has_are_found(tiny_recipe, tmp_path, monkeypatch, masked):
    """In the clear their sender is left out; in a masked sum nobody can tell who it was, and no round closes."""
    payload = SumCodec.payload

    def lying(self, delta, *place):
        if self._seed == rng.integer(tiny_recipe.get("seed", 0), "rounding", 1, "right"):
            levels, wanted = self._rounded(delta)
            name = next(iter(levels))
            self._last = (delta, {**levels, name: np.full_like(levels[name], 2 * self._form.options.levels)}, wanted)
        return payload(self, delta, *place)

    monkeypatch.setattr(SumCodec, "payload", lying)
    tiny_recipe["method"], tiny_recipe["rounds"] = {"name": "fedavg"}, 1
    tiny_recipe["wire"] = {"sum": {"levels": 7}}
    if not masked:
        run(tiny_recipe, tmp_path / "run")
        (record,) = read_rounds(tmp_path / "run" / "rounds.jsonl")[1:]
        assert record.rejected == {"right": "an integer of size 14; expected at most 7"}
        return
    tiny_recipe["privacy"] = {"secure_aggregation": {"threshold": 2}}
    with pytest.raises(FederationError, match="somebody sent what is no update; nobody can tell who"):
        run(tiny_recipe, tmp_path / "run")
    assert len(read_rounds(tmp_path / "run" / "rounds.jsonl")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"secure_aggregation": {"threshold": 3}}}, "2 of 2 clients are asked in a round; expected 2 to 2"),
        (
            {"privacy": {"secure_aggregation": {"threshold": 2}}, "participation": {"fraction": 0.5}},
            "1 of 2 clients are asked in a round; expected 1 to 1: more than half, and at most all, and at least two",
        ),
        (
            {"privacy": {"secure_aggregation": {"threshold": 2}}, "method": {"name": "fedsrd"}},
            "fedsrd needs every client's own update, not their sum and lets each client choose",
        ),
        ({"wire": {"sum": {}}, "method": {"name": "sparseloco"}}, "sparseloco lets each client choose"),
        (
            {"wire": {"sum": {}}, "weighting": "examples"},
            "the server sees no single update that it could weigh; expected wire.sum.examples",
        ),
        ({"wire": {"sum": {"examples": 9}}}, 'expected weighting = "examples", or neither'),
        ({"privacy": {"secure_aggregation": {"threshold": 1}}}, "privacy.secure_aggregation.threshold = 1"),
    ],
)
def test_what_cannot_be_added_up_or_unmasked_is_refused(tiny_recipe, tmp_path, changes, message):
    tiny_recipe["method"] = {"name": "fedavg"}
    with pytest.raises(RecipeError, match=message):
        run({**tiny_recipe, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clients_weigh_themselves_by_numbers_that_they_do_not_tell(tiny_recipe, tmp_path):
    """As the dense mean with those weights."""
    tiny_recipe["method"], tiny_recipe["weighting"], tiny_recipe["rounds"] = {"name": "fedavg"}, "examples", 1
    tiny_recipe["clients"][1]["data"]["limit"] = 2
    tiny_recipe["participation"] = {"max_share": 1.0}
    plain, _ = run(tiny_recipe, tmp_path / "plain")
    tiny_recipe["wire"] = {"sum": {"levels": 32767, "examples": 20}}
    tiny_recipe["privacy"] = {"secure_aggregation": {"threshold": 2}}
    masked, _ = run(tiny_recipe, tmp_path / "masked")
    tiny_recipe["wire"]["sum"]["examples"] = 1
    even, _ = run(tiny_recipe, tmp_path / "even")
    weighed, alike = (abs(found.final.in_domain - plain.final.in_domain) for found in (masked, even))
    assert weighed < 1e-3
    assert alike > 3 * weighed


def test_few_levels_without_feedback_are_warned_of(tiny_recipe, tmp_path):
    tiny_recipe["method"], tiny_recipe["rounds"] = {"name": "fedavg"}, 1
    tiny_recipe["wire"] = {"sum": {"levels": 1}}
    _, observer = run(tiny_recipe, tmp_path / "run")
    assert any("without error feedback" in text for text in observer.warned)

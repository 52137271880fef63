"""A federation whose clients train in one pass: the same run to rounding, and the same bits every time."""

import math

import pytest
import torch
from safetensors.torch import load_file

from fedsrd import recipe as recipes
from fedsrd.federation import local, setup
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import read_rounds
from fedsrd.training.lanes import train_together
from fedsrd.training.sft import LocalTrainer


class Quiet:
    """An observer that remembers warnings and who was seen to train."""

    def __init__(self):
        self.warned, self.steps = [], []

    def say(self, text):
        pass

    def warn(self, text):
        self.warned.append(text)

    def activity(self, round_number, what, done, total, detail=""):
        if "loss" in detail:
            self.steps.append((round_number, what, done))

    def round_done(self, record):
        pass


@pytest.fixture
def four(tiny_recipe):
    left, right = tiny_recipe["clients"]
    tiny_recipe["clients"] = [{"name": f"c{place}", "data": (left, right)[place % 2]["data"]} for place in range(4)]
    tiny_recipe["lora"]["dropout"] = 0.0
    # Small steps: Adam's are the gradient's sign, and the sign of next to nothing is as good as random.
    tiny_recipe["training"]["learning_rate"] = 1e-4
    return tiny_recipe


@pytest.fixture
def passes(monkeypatch):
    """How many clients each pass had."""
    sizes = []

    def counting(trainers, *args):
        sizes.append(len(trainers))
        return train_together(trainers, *args)

    monkeypatch.setattr("fedsrd.training.lanes.train_together", counting)
    return sizes


def run(tree, path, at_once, method="fedsrd", **options):
    tree["training"]["clients_at_once"] = at_once
    tree["method"] = {"name": method, **options}
    observer = Quiet()
    prepared = setup.prepare(recipes.parse(tree), RunFolder(path), resume=False, observer=observer)
    local.run(prepared, observer)
    adapter = next(path.rglob("adapter_model.safetensors"))
    return read_rounds(path / "rounds.jsonl"), load_file(adapter), observer


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedprox", "ffa-lora"])
def test_it_is_the_run_of_clients_that_take_turns(four, tmp_path, passes, method):
    turns, adapter, watched = run(four, tmp_path / "turns", 1, method)
    assert passes == []
    at_once, found, seen = run(four, tmp_path / "at-once", 4, method)
    assert passes == [4] * 3
    for one, other in zip(at_once[1:], turns[1:], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.eval == pytest.approx(other.eval, rel=1e-4)
        assert one.bytes_up.keys() == other.bytes_up.keys()
    for name, tensor in adapter.items():
        # The change of three rounds of two steps is up to 6e-4.
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-4)
        assert (found[name] - tensor).abs().mean() < 1e-5
    assert sorted(seen.steps) == sorted(watched.steps)
    assert seen.warned == watched.warned == []


def test_the_same_bits_every_time_also_where_groups_are_uneven(four, tmp_path, passes):
    once, adapter, _ = run(four, tmp_path / "once", 3)
    assert passes == [3] * 3
    twice, again, _ = run(four, tmp_path / "twice", 3)
    assert [record.digest for record in once] == [record.digest for record in twice]
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)


def test_who_cannot_train_together_takes_turns(four, tmp_path, passes):
    four["lora"]["dropout"] = 0.1
    turns, adapter, _ = run(four, tmp_path / "turns", 1)
    found, again, observer = run(four, tmp_path / "asked", 4)
    assert passes == []
    assert len([text for text in observer.warned if "one after the other" in text]) == 1
    assert [record.digest for record in found] == [record.digest for record in turns]
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)


def test_one_place_for_all_data_is_one_client(four, tmp_path, passes):
    found, _, _ = run(four, tmp_path / "pool", 4, "centralised")
    assert passes == []
    assert all(math.isfinite(record.train_loss) for record in found[1:])


def test_a_client_that_fails_fails_alone(four, tmp_path, monkeypatch, passes):
    chosen = LocalTrainer.examples_of

    def spoiled(self, round_number, wanted):
        found = chosen(self, round_number, wanted)
        if self.client == "c1" and round_number == 2:
            monkeypatch.setattr("fedsrd.training.lanes.clip", spoil)
        return found

    def spoil(gradients, most):
        gradients[1] = float("nan")

    monkeypatch.setattr(LocalTrainer, "examples_of", spoiled)
    four["participation"] = {"minimum": 3}
    records, adapter, observer = run(four, tmp_path / "run", 4)
    assert passes[:2] == [4, 4]
    assert any("c1 is left out: training gave NaN" in text for text in observer.warned)
    assert list(records[2].bytes_up) == ["c0", "c2", "c3"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in adapter.values())

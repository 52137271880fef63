"""A strategy's checkpoint: whatever is killed when, the run that goes on ends in the bytes of one that was not."""

import shutil
from functools import partial

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord
from own_project import nudge, start, toy

from fedsrd.errors import FederationError, RecipeError, RunFolderError
from fedsrd.flower import FedSRD, store
from fedsrd.flower.strategy import FedSRD as Subclassed

ROUNDS = 3


class Killed(BaseException):
    """The server's process ends here."""


class Phases:
    """Counts what a server does, and kills it before or after one of these steps."""

    def __init__(self, at=-1):
        self.at = at
        self.count = 0

    def __call__(self):
        self.count += 1
        if self.count - 1 == self.at:
            raise Killed


def around(phase, function):
    def called(*args, **kwargs):
        phase()
        found = function(*args, **kwargs)
        phase()
        return found

    return called


def serve(folder, phase, method="fedsrd", *, rounds=ROUNDS, monkeypatch, state=None, **options):
    """One server's process over clients that keep their state in `folder`."""
    grid = toy(nudge, state or folder, 3)
    grid.push_messages, grid.pull_messages = around(phase, grid.push_messages), around(phase, grid.pull_messages)
    monkeypatch.setattr(store, "write_atomically", around(phase, WRITE))

    def look(number, arrays):
        phase()
        return MetricRecord({"norm": sum(float(t.norm()) for t in arrays.to_torch_state_dict().values()), "n": number})

    strategy = FedSRD(method, fraction_train=0.67, fraction_evaluate=0, checkpoint=folder / "kept", **options)
    return strategy.start(grid, start(), num_rounds=rounds, evaluate_fn=look)


WRITE = store.write_atomically


def same(one, other):
    left, right = one.arrays.to_torch_state_dict(), other.arrays.to_torch_state_dict()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    for history in ("train_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert {n: dict(m) for n, m in getattr(one, history).items()} == {
            n: dict(m) for n, m in getattr(other, history).items()
        }


@pytest.mark.parametrize("method", ["fedsrd", "sparseloco", "flasc"])
def test_a_server_killed_in_any_phase_ends_in_the_same_bytes(method, tmp_path, monkeypatch):
    run = partial(serve, method=method, monkeypatch=monkeypatch)
    counter = Phases()
    calm = run(tmp_path / "calm", counter)
    assert sorted(calm.train_metrics_clientapp) == [1, 2, 3]
    assert sorted(calm.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    for at in range(counter.count):
        folder = tmp_path / str(at)
        with pytest.raises(Killed):
            run(folder, Phases(at))
        same(run(folder, Phases()), calm)
        shutil.rmtree(folder)


def test_one_killed_again_and_again_gets_there_too(tmp_path, monkeypatch):
    calm = serve(tmp_path / "calm", Phases(), "sparseloco", monkeypatch=monkeypatch)
    for at in range(1, 200):
        try:
            found = serve(tmp_path / "torn", Phases(at), "sparseloco", monkeypatch=monkeypatch)
            break
        except Killed:
            continue
    same(found, calm)
    assert at > 5


def test_a_run_that_is_over_is_given_again_and_may_be_made_longer(tmp_path, monkeypatch):
    run = partial(serve, tmp_path, Phases(), monkeypatch=monkeypatch)
    done = run(rounds=2)
    same(run(rounds=2), done)
    longer = run(rounds=4)
    assert sorted(longer.train_metrics_clientapp) == [1, 2, 3, 4]
    same(longer, serve(tmp_path / "other", Phases(), rounds=4, monkeypatch=monkeypatch))
    with pytest.raises(RecipeError, match="num_rounds = 3: checkpoint = .* has 4 rounds already"):
        run(rounds=3)


def test_another_start_is_refused_and_says_what_differs(tmp_path, monkeypatch):
    run = partial(serve, tmp_path, Phases(), monkeypatch=monkeypatch, rounds=1)
    run(alpha=0.5)
    kept = (tmp_path / "kept" / "strategy.safetensors").read_bytes()
    with pytest.raises(RecipeError, match=r"is of another run: method.alpha was 0.5 and is 0.8; start with what it"):
        run(alpha=0.8)
    with pytest.raises(RecipeError, match=r"seed was 0 and is 5; wire.uplink.values was float32 and is int8; start"):
        run(alpha=0.5, seed=5, wire={"uplink": {"values": "int8"}})
    with pytest.raises(RecipeError, match=r"method.name was fedsrd and is fedavg; start with what it was"):
        serve(tmp_path, Phases(), "fedavg", monkeypatch=monkeypatch)
    arrays = start()
    arrays.pop(next(name for name in arrays if "b.lora_A" in name))
    arrays.pop(next(name for name in arrays if "b.lora_B" in name))
    strategy = FedSRD(alpha=0.5, fraction_train=0.67, checkpoint=tmp_path / "kept")
    with pytest.raises(RecipeError, match=r"initial_arrays.b.lora_B.weight was \[4, 2\] and is nothing"):
        strategy.start(toy(nudge, tmp_path, 3), arrays)
    with pytest.raises(RecipeError, match=r"train_config.lr was nothing and is 0.5"):
        strategy.start(toy(nudge, tmp_path, 3), start(), train_config=ConfigRecord({"lr": 0.5}))
    assert (tmp_path / "kept" / "strategy.safetensors").read_bytes() == kept


def test_a_damaged_checkpoint_is_told_and_kept(tmp_path, monkeypatch):
    serve(tmp_path, Phases(), rounds=1, monkeypatch=monkeypatch)
    file = tmp_path / "kept" / "strategy.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"strategy.safetensors is damaged, the run cannot go on from it"):
        serve(tmp_path, Phases(), rounds=2, monkeypatch=monkeypatch)
    assert file.read_bytes() == content


def test_two_servers_do_not_share_a_checkpoint(tmp_path):
    one = FedSRD(checkpoint=tmp_path / "kept")
    one.prepare(toy(nudge, tmp_path), start())
    with pytest.raises(RunFolderError, match="another process is running with it"):
        FedSRD(checkpoint=tmp_path / "kept").start(toy(nudge, tmp_path), start())


def test_a_place_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used: .*; expected a folder, or a place for one"):
        FedSRD(checkpoint=tmp_path / "file").start(toy(nudge, tmp_path), start())
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match="is a symbolic link"):
        FedSRD(checkpoint=tmp_path / "link").start(toy(nudge, tmp_path), start())


def test_a_full_disk_ends_the_run_and_the_round_before_is_kept(tmp_path, monkeypatch):
    calm = serve(tmp_path / "calm", Phases(), monkeypatch=monkeypatch)
    writes = []

    def full(*args, **kwargs):
        writes.append(args)
        if len(writes) == 4:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    real = WRITE
    monkeypatch.setattr("test_kept.WRITE", full)
    with pytest.raises(FederationError, match=r"cannot be written: No space left on device; the round before is kept"):
        serve(tmp_path / "torn", Phases(), monkeypatch=monkeypatch)
    same(serve(tmp_path / "torn", Phases(), monkeypatch=monkeypatch), calm)


def test_hooks_of_ones_own_and_a_checkpoint_are_refused_together(tmp_path):
    class Own(Subclassed):
        def configure_train(self, server_round, arrays, config, grid):
            return super().configure_train(server_round, arrays, config, grid)

    with pytest.raises(RecipeError, match="checkpoint with hooks of your own"):
        Own(checkpoint=tmp_path / "kept").start(toy(nudge, tmp_path), start())


def lose(folder, name):
    """Takes away what a client keeps."""
    (found,) = [place for place in folder.glob(f"state/*/{name}") if place.parent.name != "audit"]
    shutil.rmtree(found)


@pytest.mark.parametrize("method", ["fedsrd", "fedavg", "cyclic"])
def test_a_client_that_lost_its_state_is_given_the_whole_adapter(method, tmp_path):
    def run(folder, *lost):
        def look(number, _):
            if number == 1:
                for name in lost:
                    lose(folder, name)

        strategy = FedSRD(method, fraction_evaluate=0, min_updates=2)
        return strategy.start(toy(nudge, folder), start(), num_rounds=3, evaluate_fn=look)

    calm, healed = run(tmp_path / "calm"), run(tmp_path / "lost", "client-0")
    both = run(tmp_path / "both", "client-0", "client-1")
    if method != "cyclic":  # what a method keeps at the client is gone with it
        same(healed, calm)
        same(both, calm)
    assert all(metrics["num-examples"] == 7 for metrics in healed.train_metrics_clientapp.values())


def test_a_client_that_lost_its_state_misses_a_round_where_the_others_are_enough(tmp_path):
    def look(number, _):
        if number == 1:
            lose(tmp_path, "client-0")

    result = FedSRD(fraction_evaluate=0).start(toy(nudge, tmp_path), start(), num_rounds=3, evaluate_fn=look)
    assert [metrics["num-examples"] for metrics in result.train_metrics_clientapp.values()] == [7, 4, 7]


def test_metrics_that_are_no_numbers_are_kept_and_given_again(tmp_path):
    odd = MetricRecord({"nan": float("nan"), "list": [1.5, float("inf")], "count": 3, "whole": 2.0})
    for number in (1, 2):
        strategy = FedSRD(fraction_evaluate=0, checkpoint=tmp_path / "kept")
        found = strategy.start(toy(nudge, tmp_path), start(), number, evaluate_fn=lambda *_: odd)
        for metrics in found.evaluate_metrics_serverapp.values():
            assert repr(dict(metrics)) == repr(dict(odd))
        assert sorted(found.evaluate_metrics_serverapp) == list(range(number + 1))


@pytest.mark.parametrize("said", [0.5, {"loss": "low"}, [1, 2]])
def test_what_evaluate_fn_gives_wrongly_is_told(said, tmp_path):
    with pytest.raises(RecipeError, match=r"evaluate_fn gave .*; expected a MetricRecord of numbers, or None"):
        FedSRD().start(toy(nudge, tmp_path), start(), evaluate_fn=lambda *_: said)


def test_a_loop_of_ones_own_goes_on_from_where_it_stopped(tmp_path):
    def loop(folder, stop):
        strategy, grid = FedSRD("sparseloco", fraction_evaluate=0, checkpoint=folder / "kept"), toy(nudge, folder)
        strategy.prepare(grid, start())
        arrays = start()
        for number in range(strategy.version + 1, stop + 1):
            replies = grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            arrays, _ = strategy.aggregate_train(number, replies)
        strategy._store.close()
        return arrays.to_torch_state_dict()

    loop(tmp_path / "torn", 1)
    torn, calm = loop(tmp_path / "torn", 3), loop(tmp_path / "calm", 3)
    assert all(torch.equal(tensor, calm[name]) for name, tensor in torn.items())

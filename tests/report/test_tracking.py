"""Live tracking: TensorBoard's files read back, trackers that fail, names that are wrong."""

import pytest
from watching import Watch

from fedsrd import recipe as recipes
from fedsrd.errors import RecipeError
from fedsrd.federation import local, setup
from fedsrd.report.tracking import Tracked, check, scalars
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord


def run(tree, folder, names):
    recipe, told = recipes.parse(tree), Watch()
    prepared = setup.prepare(recipe, RunFolder(folder), resume=False, observer=told)
    with Tracked(told, names, folder / "tensorboard") as tracked:
        tracked.begin(recipe, "tiny")
        local.run(prepared, tracked)
    return RunFolder(folder).records(), told


def test_tensorboard_has_every_rounds_figures(tiny_recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records, told = run(tiny_recipe, tmp_path / "run", ["tensorboard"])
    assert told.rounds == [0, 1, 2, 3]
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "tiny")).Reload()
    names = found.Tags()["scalars"]
    assert {"nll/left", "loss/mean", "loss/left", "bytes/up, mean of clients", "seconds/train"} <= set(names)
    losses = found.Scalars("loss/mean")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([r.train_loss for r in records[1:]])
    quality = found.Scalars("nll/mean in domain")
    assert [event.step for event in quality] == [0, 3]
    assert quality[1].value == pytest.approx(records[3].eval["left"])


def test_a_tracker_that_fails_does_not_end_the_run(tiny_recipe, tmp_path, monkeypatch):
    from accelerate import tracking

    calls = []

    class Fails:
        requires_logging_directory = False

        def __init__(self, run_name):
            calls.append(run_name)

        def start(self):
            pass

        def store_init_configuration(self, values):
            calls.append(values)

        def log(self, values, step):
            raise ConnectionError("the server is away")

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fails)
    records, told = run(tiny_recipe, tmp_path / "run", ["wandb"])
    assert len(records) == 4
    assert told.warned == ["wandb is not tracked any more: the server is away"]
    assert calls[0] == "tiny"
    assert calls[1]["training.steps"] == 2
    assert calls[1]["clients"] == "left, right"
    assert calls[1]["model.id"] == "a local model"
    assert str(tmp_path) not in str(calls[1])
    assert "finished" not in calls


def test_scalars_of_a_round_without_updates(tiny_recipe):
    record = RoundRecord(round=0, digest="", eval={}, bytes_up={}, bytes_down={"left": 64})
    assert scalars(record, recipes.parse(tiny_recipe)) == {"bytes/down, mean of clients": 64.0}


def test_names_are_checked_before_anything_starts(monkeypatch):
    with pytest.raises(RecipeError, match="--track 'tensorbord': expected one of tensorboard, wandb"):
        check(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install mlflow"):
        check(["mlflow"])

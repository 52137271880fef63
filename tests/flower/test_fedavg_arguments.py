"""The strategy takes what FedAvg takes, and means the same by it."""

import inspect
import re
import threading
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from own_project import nudge, start, toy

from fedsrd import methods
from fedsrd.errors import RecipeError
from fedsrd.flower import FedSRD, fedsrd_mod, rounds
from fedsrd.flower.options import NOT_OURS, StrategyOptions
from fedsrd.flower.records import HEADER


def parameters(function):
    return {name: one for name, one in inspect.signature(function).parameters.items() if name != "self"}


def test_every_argument_of_fedavg_is_taken_with_its_default():
    ours = parameters(FedSRD.__init__)
    for name, theirs in parameters(FedAvg.__init__).items():
        assert name in ours, f"FedAvg has a new argument {name}: honour it, or refuse it by name (flower/options.py)"
        assert ours[name].default == theirs.default, name
    assert parameters(FedSRD.start).keys() == parameters(Strategy.start).keys()
    for name, theirs in parameters(Strategy.start).items():
        assert parameters(FedSRD.start)[name].default == theirs.default, name


def test_what_is_checked_is_what_is_taken_and_no_option_of_a_method_is_hidden_by_it():
    ours = parameters(FedSRD.__init__)
    own = ours.keys() - {"method", "options", "server_optimizer", "method_options"}
    assert own == StrategyOptions.model_fields.keys()
    assert not own & NOT_OURS.keys()
    for name in methods.names():
        assert not methods.get(name).Options.model_fields.keys() & ours.keys(), name


def test_the_page_has_every_argument():
    page = (Path(__file__).parents[2] / "docs" / "flower-project.md").read_text(encoding="utf-8")
    for name in parameters(FedSRD.__init__).keys() - {"method", "method_options"}:
        assert f"`{name}`" in page or f"`{name}=" in page, name


def test_what_the_page_writes_can_be_written():
    page = (Path(__file__).parents[2] / "docs" / "flower-project.md").read_text(encoding="utf-8")
    found = re.findall(r"FedSRD\([^`\n]*?\)(?=[`\n])", page)
    assert len(found) > 4
    for call in found:
        if "alhpa" not in call and "checkpoint" not in call:
            assert isinstance(eval(call, {"FedSRD": FedSRD}), FedSRD), call


def asked(grid, kind="train"):
    """The nodes that were asked, by round."""
    found = {}
    for message in grid.sent:
        text = message.content[HEADER]["json"]
        if f'"kind":"{kind}"' in text:
            number = int(text.rpartition('"round":')[2].partition(",")[0].rstrip("}"))
            found.setdefault(number, set()).add(message.metadata.dst_node_id)
    return found


@pytest.mark.parametrize(("clients", "fraction", "least", "expected"), [(5, 0.5, 2, 2), (5, 0.7, 2, 3), (4, 0.1, 3, 3)])
def test_as_many_train_as_fedavg_would_ask(clients, fraction, least, expected, tmp_path):
    grid = toy(nudge, tmp_path, clients)
    FedSRD("fedavg", fraction_train=fraction, min_train_nodes=least, fraction_evaluate=0).start(grid, start())
    assert [len(nodes) for nodes in asked(grid).values()] == [expected] * 3


def evaluating(tmp_path, clients, look):
    grid = toy(nudge, tmp_path, clients)
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(nudge)
    app.evaluate()(look)
    grid.app = app
    return grid


def report(message, context):
    place = context.node_config["partition-id"]
    metrics = MetricRecord({"num-examples": 1 + place, "accuracy": float(place), "by_class": [1.0, 2.0 * place]})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@pytest.mark.parametrize(("fraction", "least", "expected"), [(0.5, 2, 2), (0.9, 2, 4), (0.1, 3, 3), (0.1, 0, 0)])
def test_as_many_evaluate_as_fedavg_would_ask(fraction, least, expected, tmp_path):
    grid = evaluating(tmp_path, 5, report)
    strategy = FedSRD("fedavg", fraction_evaluate=fraction, min_evaluate_nodes=least)
    strategy.start(grid, start(), num_rounds=1)
    assert len(asked(grid, "evaluate").get(1, ())) == expected


def test_metrics_are_averaged_by_examples_lists_too(tmp_path):
    result = FedSRD("fedavg").start(evaluating(tmp_path, 2, report), start(), num_rounds=1)
    found = dict(result.evaluate_metrics_clientapp[1])
    assert found["by_class"] == pytest.approx([1.0, 4 / 3])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["num-examples"] == 3


def test_a_round_waits_for_two_nodes_as_long_as_it_takes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rounds, "PAUSE", 0.01)
    grid = toy(nudge, tmp_path, 2)
    grid.away = {11}
    done = []
    thread = threading.Thread(
        target=lambda: done.append(FedSRD("fedavg", fraction_evaluate=0).start(grid, start(), timeout=0.01)),
        daemon=True,
    )
    with caplog.at_level("INFO", "flwr"):
        thread.start()
        thread.join(1.0)
        assert thread.is_alive()
        assert not asked(grid)
        grid.away = set()
        thread.join(60)
    assert done
    assert "Waiting for clients to connect: 1 of at least 2 have joined" in caplog.text


@pytest.mark.parametrize("options", [{"min_available_nodes": 3}, {"min_train_nodes": 3}])
def test_the_larger_minimum_is_waited_for(options, tmp_path, monkeypatch):
    waited = []

    def arrive(seconds):
        waited.append(seconds)
        grid.away = set()

    monkeypatch.setattr(rounds.time, "sleep", arrive)
    grid = toy(nudge, tmp_path, 3)
    grid.away = {12}
    FedSRD("fedavg", fraction_evaluate=0, **options).start(grid, start(), num_rounds=1)
    assert len(waited) == 1


def test_the_projects_own_keys_are_used(tmp_path):
    seen = []

    def train(message, context):
        content = message.content
        assert set(content) == {"adapter", "settings"}
        seen.append(content["settings"]["server-round"])
        message.content = RecordDict({"arrays": content["adapter"], "config": content["settings"]})
        reply = nudge(message, context)
        weight = reply.content["metrics"].pop("num-examples")
        reply.content["metrics"]["tokens"] = weight
        return reply

    keys = {"weighted_by_key": "tokens", "arrayrecord_key": "adapter", "configrecord_key": "settings"}
    one = FedSRD("fedavg", fraction_evaluate=0, max_share=1.0, **keys)
    found = one.start(toy(train, tmp_path / "one"), start(), num_rounds=2)
    assert sorted(seen) == [1, 1, 2, 2]
    plain = FedSRD("fedavg", fraction_evaluate=0, max_share=1.0)
    other = plain.start(toy(nudge, tmp_path / "other"), start(), num_rounds=2)
    for name, tensor in other.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, found.arrays.to_torch_state_dict()[name])
    assert found.train_metrics_clientapp[1]["tokens"] == 7


def test_metrics_are_put_together_by_the_projects_own_functions(tmp_path):
    def train(message, context):
        reply = nudge(message, context)
        reply.content["metrics"]["accuracy"] = float(context.node_config["partition-id"])
        return reply

    def largest(contents, weight):
        found = [next(iter(content.metric_records.values())) for content in contents]
        return MetricRecord({"most": max(one["accuracy"] for one in found), "all": sum(one[weight] for one in found)})

    grid = evaluating(tmp_path, 2, report)
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(train)
    app.evaluate()(report)
    grid.app = app
    strategy = FedSRD("fedavg", train_metrics_aggr_fn=largest, evaluate_metrics_aggr_fn=largest)
    result = strategy.start(grid, start(), num_rounds=1)
    told = dict(result.train_metrics_clientapp[1])
    assert told.pop("uplink-bytes") > 0
    assert told == {"most": 1.0, "all": 7}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"most": 1.0, "all": 3}
    # Without them, the weighted mean, as FedAvg's.
    plain = FedSRD("fedavg").start(evaluating(tmp_path / "plain", 2, report), start(), num_rounds=1)
    assert "accuracy" not in plain.train_metrics_clientapp[1]


def test_a_site_that_tells_no_metrics_or_no_loss_tells_none_of_training(tmp_path):
    def train(message, context):
        reply = nudge(message, context)
        reply.content["metrics"]["accuracy"] = 0.5
        return reply

    assert (
        FedSRD("fedavg", fraction_evaluate=0)
        .start(toy(train, tmp_path / "all"), start())
        .train_metrics_clientapp[3]["accuracy"]
    )
    for name in ("loss", "metrics"):
        folder = tmp_path / name
        grid = toy(train, folder)
        (folder / "rules.toml").parent.mkdir(exist_ok=True)
        (folder / "rules.toml").write_text(f"[rules.tell]\n{name} = false\n")
        for config in grid.configs.values():
            config["rules"] = str(folder / "rules.toml")
        result = FedSRD("fedavg", fraction_evaluate=0).start(grid, start(), num_rounds=1)
        assert "accuracy" not in result.train_metrics_clientapp[1]
        assert ("train_loss" in result.train_metrics_clientapp[1]) == (name == "metrics")


def test_evaluation_in_flowers_own_loop_sees_the_newest_model(tmp_path):
    seen = {}

    def look(message, context):
        number = message.content["config"]["server-round"]
        assert message.content["config"]["split"] == "test"
        seen[number, context.node_config["partition-id"]] = message.content["arrays"].to_torch_state_dict()
        return report(message, context)

    class Own(FedSRD):
        """Somebody's strategy that has its own hook: the loop is Flower's."""

        def configure_train(self, server_round, arrays, config, grid):
            config["lr"] = 0.1 / server_round
            return super().configure_train(server_round, arrays, config, grid)

    rates = []

    def train(message, context):
        rates.append(message.content["config"]["lr"])
        return nudge(message, context)

    grid = evaluating(tmp_path / "own", 2, look)
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(train)
    app.evaluate()(look)
    grid.app = app
    config = ConfigRecord({"split": "test"})
    result = Own("fedavg").start(grid, start(), num_rounds=2, timeout=5, evaluate_config=config)
    assert rates == [0.1, 0.1, 0.05, 0.05]
    assert sorted(seen) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    final = result.arrays.to_torch_state_dict()
    for place in range(2):
        assert all(torch.equal(final[name], tensor) for name, tensor in seen[2, place].items())
    plain = FedSRD("fedavg").start(evaluating(tmp_path / "plain", 2, report), start(), num_rounds=2)
    assert {n: dict(m) for n, m in result.evaluate_metrics_clientapp.items()} == {
        n: dict(m) for n, m in plain.evaluate_metrics_clientapp.items()
    }


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"alhpa": 0.8}, r"FedSRD\(alhpa=0.8\): unknown argument: did you mean 'alpha'\?"),
        ({"fraction_trian": 0.8}, r"FedSRD\(fraction_trian=0.8\): unknown argument: did you mean 'fraction_train'\?"),
        ({"zzz": 1}, r"unknown argument: expected one of .*alpha, .*fraction_train, "),
        ({"fraction_fit": 0.5}, r"FedSRD\(fraction_fit=0.5\): unknown argument; here it is fraction_train"),
        ({"proximal_mu": 0.5}, r"here it is FedSRD\('fedprox', mu=...\)"),
        ({"alpha": 7}, "method.alpha = 7: expected less than 1"),
        ({"alpha": "high"}, "method.alpha = 'high': expected a number"),
        ({"alpha": 0.5, "options": {"alpha": 0.6}}, "alpha is given by name and in options"),
        ({"options": [1]}, r"options = \[1\]: expected a dict"),
        ({"fraction_train": 1.5}, "fraction_train = 1.5: expected at most 1"),
        ({"fraction_train": "half"}, "fraction_train = 'half': expected a number"),
        ({"fraction_train": 0.0}, "fraction_train = 0: a round without training has no update to send"),
        ({"fraction_evaluate": -1}, "fraction_evaluate = -1: expected at least 0"),
        ({"fraction_evaluate": float("nan")}, "fraction_evaluate = nan: expected a finite number"),
        ({"min_train_nodes": 0}, "min_train_nodes = 0: expected at least 1"),
        ({"min_train_nodes": 2.5}, "min_train_nodes = 2.5: expected a whole number"),
        ({"min_train_nodes": True}, "min_train_nodes = true: expected a number"),
        ({"min_available_nodes": 10**12}, "min_available_nodes = 1000000000000: expected at most 1000000000"),
        ({"weighted_by_key": ""}, "weighted_by_key = '': expected text that is not empty"),
        ({"arrayrecord_key": 5}, "arrayrecord_key = 5: expected text"),
        ({"arrayrecord_key": "a", "configrecord_key": "a"}, "arrayrecord_key and configrecord_key are both 'a'"),
        ({"train_metrics_aggr_fn": 5}, "train_metrics_aggr_fn = 5: expected a function"),
        ({"weighting": "size"}, "weighting = 'size': expected 'uniform' or 'examples'"),
        ({"seed": -1}, "seed = -1: expected at least 0"),
        ({"wire": "int8"}, "wire = 'int8': expected a table"),
        ({"wire": {"uplnik": {}}}, "unknown key 'wire.uplnik': did you mean 'uplink'"),
        ({"wire": {"uplink": {"valeus": "int8"}}}, "unknown key 'wire.uplink.valeus': did you mean 'values'"),
        ({"wire": {"uplink": {"values": "int5"}}}, "wire.uplink.values = 'int5': expected 'float32', "),
        ({"wire": {"sum": {"levels": 7}}}, "wire.sum: sums of integers need FedSRD's own Flower app"),
        ({"max_share": 0}, "max_share = 0: expected more than 0"),
        ({"keys": {"a b": "x"}}, "keys"),
        ({"checkpoint": 5}, "checkpoint = 5: expected a path"),
        ({"server_optimizer": {"name": "adam", "learning_rate": -1}}, "learning_rate = -1: expected more than 0"),
        ({"server_optimizer": "adam"}, "server_optimizer"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_in_plain_words(given, reason):
    with pytest.raises(RecipeError, match=reason) as caught:
        FedSRD(**given)
    assert "Input should" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("method", [0.5, None, {"name": "fedsrd"}])
def test_the_first_argument_is_a_methods_name(method):
    with pytest.raises(
        RecipeError, match=r"the first argument is the method's name; expected .*fedsrd.*by their names"
    ):
        FedSRD(method)


def test_a_methods_options_by_name_are_those_in_a_dict(tmp_path):
    one = FedSRD(alpha=0.5, fraction_evaluate=0).start(toy(nudge, tmp_path / "one"), start(), num_rounds=2)
    other = FedSRD(options={"alpha": 0.5}, fraction_evaluate=0).start(toy(nudge, tmp_path / "two"), start(), 2)
    for name, tensor in one.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, other.arrays.to_torch_state_dict()[name])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"num_rounds": -1}, "num_rounds = -1: expected a whole number of 0 or more"),
        ({"num_rounds": "3"}, "num_rounds = '3': expected a whole number"),
        ({"timeout": 0}, "timeout = 0: expected seconds, more than 0"),
        ({"timeout": "long"}, "timeout = 'long': expected seconds"),
    ],
    ids=str,
)
def test_wrong_arguments_of_start_are_told(given, reason, tmp_path):
    with pytest.raises(RecipeError, match=reason):
        FedSRD().start(toy(nudge, tmp_path), ArrayRecord(), **given)

"""The strategy and the mod in somebody else's Flower project: examples/flower, and its mistakes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from grid import ToyGrid
from own_project import ALONE, nudge, start, toy

from fedsrd.errors import FederationError, RecipeError
from fedsrd.federation.remote.replica import Replica
from fedsrd.flower import FedSRD, fedsrd_mod
from fedsrd.flower.records import HEADER
from fedsrd.training.models import adapter_tensors

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"


@pytest.fixture
def example(tiny_model, tmp_path, monkeypatch):
    """The example's grid of two clients, its server's context, and its apps."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "project"]:
        monkeypatch.delitem(sys.modules, name)
    from project.client_app import app as client
    from project.server_app import app as server

    config = {"model": str(tiny_model), "rounds": 3}

    def with_config(message, context):
        return client(message, Context(1, context.node_id, context.node_config, context.state, config))

    nodes = [{"partition-id": place, "num-partitions": 2, "state": str(tmp_path / "state")} for place in range(2)]
    return ToyGrid(with_config, nodes), Context(1, 1, {}, RecordDict(), config), server


def test_the_example_runs_and_needs_fewer_than_ten_lines_of_us(example, capsys):
    grid, context, server = example
    server(grid, context)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    assert len(lines) == 3
    assert [line.split(":")[0] for line in lines] == ["round 1", "round 2", "round 3"]
    marked = [line for file in EXAMPLE.rglob("*.py") for line in file.read_text().splitlines() if "# FedSRD" in line]
    assert 0 < len(marked) < 10
    # One Array a message; whoever holds the state is told the difference only.
    tasks = [m for m in grid.sent if '"kind":"train"' in m.content[HEADER]["json"]]
    assert all(len(m.content.array_records) <= 1 for m in tasks)
    sizes = [sum(len(a.data) for r in m.content.array_records.values() for a in r.values()) for m in tasks]
    assert max(sizes[2:]) < min(sizes[:2]) / 2


def test_fedavg_through_the_mod_is_the_weighted_mean_of_the_factors(tmp_path):
    given = start()
    seen = {}
    result = FedSRD("fedavg", max_share=1.0).start(
        toy(nudge, tmp_path),
        given,
        num_rounds=2,
        evaluate_fn=lambda n, a: seen.update({n: a}) or MetricRecord({"n": n}),
    )
    state = {name: tensor.double() for name, tensor in given.to_torch_state_dict().items()}
    for number in (1, 2):
        moves = {}
        for client, weight in ((0, 3 / 7), (1, 4 / 7)):
            noise = torch.Generator().manual_seed(100 * number + client)
            # The order of the names that the client was given.
            for name in adapter_tensors_order(given):
                step = 0.1 * torch.randn(state[name].shape, generator=noise).double()
                moves[name] = moves.get(name, 0) + weight * step
        state = {name: state[name] + moves[name] for name in state}
    found = result.arrays.to_torch_state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)
    assert sorted(seen) == sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert result.train_metrics_clientapp[1]["num-examples"] == 7


def adapter_tensors_order(arrays):
    from fedsrd.training.models import tensors_of_adapter

    return list(adapter_tensors(tensors_of_adapter(arrays.to_torch_state_dict())))


@pytest.mark.parametrize("method", ["fedsrd", "fedsrd-e", "ffa-lora", "flasc", "fed-dare", "fedprox", "flexlora"])
def test_other_methods_on_the_same_train_function_end_with_one_state_everywhere(method, tmp_path):
    FedSRD(method, min_train_nodes=2).start(toy(nudge, tmp_path), start(), num_rounds=3)
    federation = next(folder for folder in (tmp_path / "state").iterdir() if folder.name != "audit")
    held = [Replica(tmp_path / "state", federation.name, f"client-{place}").state() for place in range(2)]
    assert [one.version for one in held] == [3, 3]
    assert held[0].digest == held[1].digest


def test_what_the_project_tells_its_functions_reaches_them(tmp_path):
    seen = []

    def train(message, context):
        seen.append(dict(message.content["config"]))
        return nudge(message, context)

    told = ConfigRecord({"lr": 0.5, "name": "x", "steps": [1, 2], "flag": True, "server-round": 99})
    FedSRD("fedavg", **ALONE).start(toy(train, tmp_path, 1), start(), num_rounds=1, train_config=told)
    expected = {"lr": 0.5, "name": "x", "steps": [1, 2], "flag": True}
    assert seen == [{**expected, "server-round": 1, "train-factors": "BA", "proximal-mu": 0.0}]
    with pytest.raises(RecipeError, match="train_config: 'key' holds bytes"):
        FedSRD().start(toy(train, tmp_path), start(), train_config=ConfigRecord({"key": b"x"}))


def test_clients_evaluate_what_they_hold_with_their_own_function(tmp_path):
    seen = {}

    def look(message, context):
        assert message.metadata.message_type == "evaluate"
        number, place = message.content["config"]["server-round"], context.node_config["partition-id"]
        seen[number, place] = message.content["arrays"].to_torch_state_dict()
        metrics = MetricRecord({"num-examples": 1 + 2 * place, "eval_loss": float(place), "text": [1, 2]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = toy(nudge, tmp_path)
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(nudge)
    app.evaluate()(look)
    grid.app = app
    result = FedSRD("fedavg").start(grid, start(), num_rounds=2)
    assert sorted(seen) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    final = result.arrays.to_torch_state_dict()
    for place in range(2):
        assert all(torch.equal(final[name], tensor) for name, tensor in seen[2, place].items())
    assert result.evaluate_metrics_clientapp[1]["eval_loss"] == 0.75
    # Nobody is asked where nobody should be, and who has no evaluate function is passed over.
    assert not FedSRD("fedavg", fraction_evaluate=0).start(grid, start(), num_rounds=1).evaluate_metrics_clientapp
    plain = FedSRD("fedavg").start(toy(nudge, tmp_path / "plain"), start(), num_rounds=1)
    assert not plain.evaluate_metrics_clientapp


def test_flowers_own_loop_drives_it_too(tmp_path):
    ours, theirs = FedSRD("fedavg"), FedSRD("fedavg")
    one = ours.start(toy(nudge, tmp_path / "one"), start(), num_rounds=3)
    other = Strategy.start(theirs, toy(nudge, tmp_path / "other"), start(), num_rounds=3, timeout=5)
    for name, tensor in one.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, other.arrays.to_torch_state_dict()[name])


def replaced(**changes):
    def train(message, context):
        reply = nudge(message, context)
        content = {"arrays": reply.content["arrays"], "metrics": reply.content["metrics"], **changes}
        return Message(RecordDict({k: v for k, v in content.items() if v is not None}), reply_to=message)

    return train


def both(message, context):
    message.content["config"]["train-factors"] = "BA"
    return nudge(message, context)


@pytest.mark.parametrize(
    ("train", "method", "reason"),
    [
        (replaced(metrics=None), "fedsrd", "1 ArrayRecords and 0 MetricRecords"),
        (replaced(metrics=MetricRecord({"loss": 1.0})), "fedsrd", "with num-examples"),
        (replaced(metrics=MetricRecord({"num-examples": -5})), "fedsrd", "num-examples = -5: expected at least 1"),
        (
            replaced(metrics=MetricRecord({"num-examples": 10**18})),
            "fedsrd",
            "num-examples = 10+: expected at most 10+",
        ),
        (
            replaced(metrics=MetricRecord({"num-examples": float("nan")})),
            "fedsrd",
            "num-examples = nan: expected a finite number",
        ),
        (
            replaced(metrics=MetricRecord({"num-examples": [3, 4]})),
            "fedsrd",
            r"num-examples = \[3, 4\]: expected a whole number",
        ),
        (
            replaced(arrays=ArrayRecord({"x": torch.zeros(2)})),
            "fedsrd",
            "differ from the adapter's in name: they have 'x', which",
        ),
        (both, "ffa-lora", "the method does not train a.lora_A.weight, but it has changed"),
    ],
)
def test_mistakes_of_a_train_function_are_told_to_the_server(train, method, reason, tmp_path):
    with pytest.raises(FederationError, match=reason):
        FedSRD(method, attempts=1, **ALONE).start(toy(train, tmp_path, 1), start(), num_rounds=1, timeout=2)


def test_a_loss_that_is_none_costs_a_client_nothing(tmp_path):
    def train(message, context):
        reply = nudge(message, context)
        if context.node_config["partition-id"] == 0:
            reply.content["metrics"]["train_loss"] = float("nan")
        return reply

    told = FedSRD("fedavg").start(toy(train, tmp_path / "one"), start(), num_rounds=1).train_metrics_clientapp[1]
    assert dict(told) == {"train_loss": 1.0, "num-examples": 7, "uplink-bytes": told["uplink-bytes"]}
    lost = replaced(metrics=MetricRecord({"num-examples": 3, "train_loss": 1e308}))
    told = FedSRD("fedavg").start(toy(lost, tmp_path / "two"), start(), num_rounds=1).train_metrics_clientapp[1]
    assert "train_loss" not in told


def test_of_two_clients_none_counts_for_more_than_the_other_whatever_it_claims(tmp_path):
    def boast(message, context):
        reply = nudge(message, context)
        reply.content["metrics"]["num-examples"] = 10**9 if context.node_config["partition-id"] else 1
        return reply

    boasted = FedSRD("fedavg").start(toy(boast, tmp_path / "one"), start(), num_rounds=1)
    alike = FedSRD("fedavg", weighting="uniform").start(toy(nudge, tmp_path / "two"), start(), num_rounds=1)
    expected = alike.arrays.to_torch_state_dict()
    assert all(torch.equal(found, expected[name]) for name, found in boasted.arrays.to_torch_state_dict().items())


@pytest.mark.parametrize(
    "said",
    [
        None,
        {"eval_loss": 1.0},
        {"num-examples": -1, "eval_loss": 9.0},
        {"num-examples": 10**12, "eval_loss": 9.0},
        {"num-examples": float("nan"), "eval_loss": 9.0},
        {"num-examples": [1], "eval_loss": 9.0},
        {"num-examples": 5, "eval_loss": float("nan")},
        {"num-examples": 5, "eval_loss": float("inf")},
        {"num-examples": 5, "eval_loss": [9.0]},
    ],
    ids=str,
)
def test_what_one_client_says_of_its_evaluation_does_not_spoil_the_others(said, tmp_path):
    grid = toy(nudge, tmp_path)
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(nudge)
    metrics = MetricRecord({"num-examples": 2, "eval_loss": 0.5})
    app.evaluate()(lambda message, context: Message(RecordDict({"metrics": metrics}), reply_to=message))
    grid.app = app

    def meddle(node, reply):
        if node == 10 and reply.has_content() and "metrics" in reply.content:
            del reply.content["metrics"]
            if said is not None:
                reply.content["metrics"] = MetricRecord(said)
        return reply

    grid.meddle = meddle
    result = FedSRD("fedavg").start(grid, start(), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["eval_loss"] == 0.5


def test_mistakes_in_the_strategy_are_told():
    with pytest.raises(RecipeError, match="'fedsdr': no such method"):
        FedSRD("fedsdr")
    with pytest.raises(RecipeError, match="unknown key 'method.alfa': did you mean 'alpha'"):
        FedSRD("fedsrd", options={"alfa": 3})
    with pytest.raises(FederationError, match="must come first"):
        FedSRD().aggregate_train(1, [])


REFUSED = pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("fedsa-lora", "ends with a model of each client's own"),
        ("local", "ends with a model of each client's own and is a reference point that sends nothing"),
        (
            "centralised",
            "ends with a model of each client's own and is a reference point that sends nothing and "
            "has all data in one place",
        ),
        ("flora", "changes the base model"),
        ("scaffold", "changes the gradients of local training"),
    ],
)
FIT = r"use FedSRD's own Flower app \(docs/deploy.md\)\. Methods that fit: cyclic, fed-dare, fedavg, .*fedsrd"


@REFUSED
def test_a_method_that_needs_more_than_the_strategy_has_is_refused(method, reason):
    with pytest.raises(RecipeError, match=f"method = '{method}': {method} {reason}, which a Flower strategy .*{FIT}"):
        FedSRD(method)


@REFUSED
def test_the_mod_refuses_it_too_whatever_the_server_says(method, reason, tmp_path, monkeypatch):
    def nothing(*_):
        pass

    lax = SimpleNamespace(check=nothing, STRATEGY=None)
    monkeypatch.setattr("fedsrd.flower.strategy.capabilities", lax)
    called = []

    def train(message, context):
        called.append(message)
        return nudge(message, context)

    with pytest.raises(FederationError, match=f"{method} {reason}, which a Flower strategy .*Flower app"):
        FedSRD(method, attempts=1, **ALONE).start(toy(train, tmp_path, 1), start(), num_rounds=1, timeout=2)
    assert not called


def test_a_server_optimizer_is_refused_where_there_is_no_step():
    with pytest.raises(RecipeError, match="makes no step that a server optimizer could change"):
        FedSRD("fedsrd", options={"server": "svd"}, server_optimizer={"name": "sgd", "learning_rate": 1.0})


def test_a_message_that_is_not_ours_and_trains_nothing_passes_the_mod(tmp_path):
    app = ClientApp(mods=[fedsrd_mod])
    app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
    grid = ToyGrid(app, [{"partition-id": 0}])
    (name,) = grid.push_messages([Message(RecordDict(), 10, "query")])
    (reply,) = grid.pull_messages([name])
    assert reply.has_content()

"""What somebody sees who swaps FedAvg for FedSRD in four lines, and something does not fit."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from own_project import ALONE, nudge, start, toy

from fedsrd.errors import FederationError, ModelError
from fedsrd.flower import FedSRD


def changed(change):
    """A project whose adapter is another at the server."""
    return ArrayRecord(change(start().to_torch_state_dict()))


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (
            lambda: None,
            "initial_arrays is a NoneType; expected ArrayRecord.get_peft_model_state_dict.model.. of a PEFT",
        ),
        (lambda: ArrayRecord(), "initial_arrays is empty; expected"),
        (
            lambda: ArrayRecord({"model.layers.0.q_proj.weight": torch.zeros(3, 3)}),
            "'model.layers.0.q_proj.weight' is no tensor of a LoRA adapter.*sends adapters, and no other weights",
        ),
        (
            lambda: changed(lambda s: {n.replace(".weight", ".default.weight"): t for n, t in s.items()}),
            r"is no tensor of a LoRA adapter.*expected ArrayRecord\(get_peft_model_state_dict\(model\)\)",
        ),
        (lambda: changed(lambda s: without(s, "b.lora_A")), "module b has only factor B; expected"),
        (
            lambda: changed(lambda s: {n.removeprefix("base_model.model."): t for n, t in s.items()}),
            "is not under PEFT's name for it",
        ),
        (
            lambda: changed(lambda s: {n: t.half() for n, t in s.items()}),
            "is float16; expected float32, because a step",
        ),
        (lambda: changed(lambda s: {n: t * float("nan") for n, t in s.items()}), "holds NaN or infinity"),
    ],
)
def test_a_model_that_cannot_be_sent_is_told_before_anybody_is_asked(arrays, reason, tmp_path):
    grid = toy(nudge, tmp_path)
    with pytest.raises(ModelError, match=reason):
        FedSRD().start(grid, arrays())
    assert not grid.sent


def trained(change):
    def train(message, context):
        reply = nudge(message, context)
        reply.content["arrays"] = ArrayRecord(change(reply.content["arrays"].to_torch_state_dict()))
        return reply

    return train


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda s: {n.replace("model.a.", "model.c."): t for n, t in s.items()},
            "in name: they have 'base_model.model.c.lora_A.weight', which the server's adapter lacks, and lack "
            "'base_model.model.a.lora_A.weight' .2 more names differ.; expected one model and one LoraConfig",
        ),
        (lambda s: without(s, "b."), "in name: they lack 'base_model.model.b.lora_A.weight' .1 more names differ."),
        (
            lambda s: {n: t[:1] if "lora_A" in n else t[:, :1] for n, t in s.items()},
            r"in shape: .* is \(6, 1\), \(6, 2\) at the server; expected one model and one LoraConfig",
        ),
        (lambda s: {n: t.half() for n, t in s.items()}, "is float16; expected float32, because a step of training"),
    ],
)
def test_a_client_whose_model_is_another_is_told_what_differs(change, reason, tmp_path):
    with pytest.raises(FederationError, match=reason):
        FedSRD(attempts=1, **ALONE).start(toy(trained(change), tmp_path, 1), start(), timeout=2)


def test_a_client_without_the_mod_ends_the_start_at_once(tmp_path):
    grid = toy(nudge, tmp_path)
    bare = ClientApp()
    bare.train()(nudge)
    grid.app = bare
    reason = (
        r"0 of at least 2 clients can take part .*node 10: KeyError: .*does its ClientApp have mods=\[fedsrd_mod\]\?"
    )
    with pytest.raises(FederationError, match=reason):
        FedSRD().start(grid, start())

    # One that answers anything does not pass either.
    calm = ClientApp()
    calm.train()(lambda message, context: Message(RecordDict(), reply_to=message))
    grid.app = calm
    with pytest.raises(FederationError, match=r"is not one of FedSRD's.*does its ClientApp have mods=\[fedsrd_mod\]"):
        FedSRD().start(grid, start())


def test_one_client_without_the_mod_is_named(tmp_path):
    grid = toy(nudge, tmp_path)
    good, bare = grid.app, ClientApp()
    bare.train()(nudge)
    grid.app = lambda message, context: (bare if context.node_id == 11 else good)(message, context)
    with pytest.raises(FederationError, match="1 of at least 2 clients can take part .*: node 11: KeyError"):
        FedSRD().start(grid, start())
    # Where the others are enough, it is left out.
    result = FedSRD("fedavg", **ALONE).start(grid, start(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["num-examples"] == 3


def test_two_clients_of_one_name_are_told(tmp_path):
    grid = toy(nudge, tmp_path)
    for config in grid.configs.values():
        config["client"] = "ward"
    with pytest.raises(
        FederationError, match="1 of at least 2 clients can take part .*another SuperNode is called ward"
    ):
        FedSRD().start(grid, start())


def test_where_names_have_keys_a_stranger_ends_nothing(tmp_path, monkeypatch):
    from fedsrd.flower import rounds

    class EnoughError(Exception):
        pass

    def waited(_):
        raise EnoughError

    monkeypatch.setattr(rounds.time, "sleep", waited)
    keys = {"ward": "ed25519:" + "A" * 43 + "="}
    grid = toy(nudge, tmp_path)
    for place, config in enumerate(grid.configs.values()):
        config["client"] = ("ward", "other")[place]
    with pytest.raises(EnoughError):
        FedSRD(keys=keys).start(grid, start())


def test_a_server_without_the_strategy_gets_no_adapter_and_is_told(tmp_path, caplog):
    grid = toy(nudge, tmp_path)
    with caplog.at_level("INFO", "flwr"):
        result = FedAvg(fraction_evaluate=0.0).start(grid, start(), num_rounds=1)
    assert not result.train_metrics_clientapp
    assert "has fedsrd_mod, and the server's message is not from a FedSRD strategy; expected strategy = FedSRD()" in (
        caplog.text
    )

"""Somebody else's Flower project: an adapter of two modules, a train function, and clients with the mod."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from grid import ToyGrid

from fedsrd.flower import fedsrd_mod

ALONE = {"min_available_nodes": 1, "min_train_nodes": 1, "fraction_evaluate": 0}
"""Arguments of a strategy that goes on with one client."""


def toy(train, tmp_path, count=2):
    """A grid of clients with this train function behind the mod."""
    app = ClientApp(mods=[fedsrd_mod])
    app.train()(train)
    nodes = [{"partition-id": place, "state": str(tmp_path / "state"), "mine": 1} for place in range(count)]
    return ToyGrid(app, nodes)


def start():
    """An adapter of two modules, trained already."""
    noise = torch.Generator().manual_seed(0)
    shapes = {"a": (6, 5), "b": (4, 7)}
    return ArrayRecord(
        {
            f"base_model.model.{name}.lora_{factor}.weight": torch.randn(shape, generator=noise)
            for name, (rows, columns) in shapes.items()
            for factor, shape in (("A", (2, columns)), ("B", (rows, 2)))
        }
    )


def nudge(message, context):
    """Trains by a step that follows from the client and the round."""
    config = message.content["config"]
    noise = torch.Generator().manual_seed(100 * config["server-round"] + context.node_config["partition-id"])
    state = message.content["arrays"].to_torch_state_dict()
    for name, tensor in state.items():
        if name.rsplit("lora_")[1][0] in config["train-factors"]:
            tensor += 0.1 * torch.randn(tensor.shape, generator=noise)
    metrics = MetricRecord({"num-examples": 3 + context.node_config["partition-id"], "train_loss": 1.0})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)

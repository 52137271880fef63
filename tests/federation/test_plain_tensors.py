"""A trainable that is no LoRA adapter goes the same way: a vector, a scalar and a 3-d tensor, through whole rounds, a
checkpoint, a snapshot and Flower.
"""

import pytest
import torch
from toy import Federation, ToyTrainer, build, config_of

from fedsrd import methods, wire
from fedsrd.core.tensors import TensorSpec, TensorTable
from fedsrd.errors import RecipeError
from fedsrd.federation.checkpoint import Checkpoint
from fedsrd.federation.client import ClientMemory
from fedsrd.federation.server import Server
from fedsrd.methods import capabilities

VECTOR = TensorTable((TensorSpec("prompt", (40,)),))
MIXED = TensorTable((TensorSpec("prompt", (40,)), TensorSpec("gate", ()), TensorSpec("kernel", (2, 3, 5))))
FITTING = pytest.mark.parametrize("name", capabilities.fitting(capabilities.PLAIN_TENSORS))
TABLES = pytest.mark.parametrize("table", [VECTOR, MIXED], ids=["vector", "mixed"])


@FITTING
@TABLES
@pytest.mark.parametrize("values", ["float32", "int4"])
def test_a_round_of_it(name, table, values):
    federation = Federation(build(name), table=table, coding=wire.WireOptions(values=values))
    for number in (1, 2, 3):
        closed = federation.round()
        assert len(closed.accepted) == 2
        assert federation.server.version == number
    model = federation.server.model()
    assert {key: tuple(tensor.shape) for key, tensor in model.items()} == table.shapes
    assert all(client.digest == federation.server.digest for client in federation.clients)


@TABLES
@pytest.mark.parametrize("sparsifier", ["dense", "importance", "magnitude", "random"])
def test_its_mean_is_fedavgs(table, sparsifier):
    method = build("fedavg", sparsifier=sparsifier, rescale="none", ratio="fixed", alpha=0.5)
    federation = Federation(method, table=table)
    federation.round()
    if sparsifier == "dense":
        trained = [trainer.last for trainer in federation.trainers.values()]
        for name, tensor in federation.server.model().items():
            torch.testing.assert_close(tensor, (trained[0][name] + trained[1][name]) / 2)
    else:
        sent = federation.server.model()["prompt"]
        assert 0 < int((sent != 0).sum()) < 40


@FITTING
def test_its_checkpoint_goes_on_with_the_same_bytes(name, tmp_path):
    whole, broken = Federation(build(name), table=MIXED).rounds(4), Federation(build(name), table=MIXED).rounds(2)
    server = broken.server
    memories = {client.name: client.memory.kept for client in broken.clients}
    file = tmp_path / "state"
    file.write_bytes(
        Checkpoint(
            server.state, server.memory, memories, known=server.ledger.known, counted=server.ledger.counted
        ).to_bytes()
    )
    read = Checkpoint.load(file, "")
    again = Federation(build(name), table=MIXED)
    again.server.restore(read.state, read.server)
    again.server.ledger.restore(read.missed, read.known, read.counted)
    for client in again.clients:
        client.restore(read.state, ClientMemory(read.clients.get(client.name, {}), read.counted[client.name]))
    again.rounds(2)
    assert again.server.digest == whole.server.digest
    assert all(torch.equal(tensor, whole.server.model()[key]) for key, tensor in again.server.model().items())


def test_who_was_away_gets_it_whole():
    federation = Federation(build("fedavg"), table=MIXED, keys=(1, 2, 3))
    federation.round()
    for _ in range(3):
        federation.round(present=[0, 1])
    federation.server.forget("c2")
    closed = federation.round()
    assert len(closed.accepted) == 3
    assert federation.sent["c2"].sync.snapshot is not None
    assert federation.clients[2].digest == federation.server.digest


@pytest.mark.parametrize("name", sorted(set(methods.names()) - set(capabilities.fitting(capabilities.PLAIN_TENSORS))))
def test_methods_of_lora_pairs_refuse_it(name):
    with pytest.raises(RecipeError, match="pairs of LoRA factors.*Methods that fit: .*fedavg"):
        config_of(build(name), table=VECTOR)


def test_it_goes_through_flower(tmp_path):
    pytest.importorskip("flwr")
    from grid import ToyGrid

    from fedsrd.federation.remote.header import Job
    from fedsrd.federation.rounds import Rounds
    from fedsrd.flower.engine import FlowerEngine
    from fedsrd.flower.records import respond
    from fedsrd.recipe import ParticipationSection

    keys = {"c0": 1, "c1": 2}

    class Runtime:
        strict = knows_model = True

        def table(self, job):
            return job.table()

        def trainer(self, job, site):
            return ToyTrainer(keys[site.name])

        def finish(self, client, job, site, replica):
            pass

    class Watch:
        def event(self, kind, **fields):
            pass

    for name in ("fedavg", "scaffold", "feddyn", "flasc"):
        config = config_of(build(name), table=VECTOR)
        server = Server(config, ranks=dict.fromkeys(keys))
        chosen = {"name": name, **build(name).options.model_dump()}
        job = Job(method=chosen, seed=0, uplink=config.uplink, tensors=list(VECTOR.specs))
        configs = [{"client": client, "state": str(tmp_path / name)} for client in keys]
        grid = ToyGrid(lambda message, context: respond(message, context, Runtime()), configs)
        engine = FlowerEngine(grid, server, "0" * 16, lambda _, job=job: job, deadline=5.0, minimum=2, watch=Watch())
        rounds = Rounds(server, engine, ParticipationSection(minimum=2), 0, pytest.fail)
        for _ in range(3):
            rounds.one_round()
        rounds.finalize()
        here = Federation(build(name), table=VECTOR).rounds(3)
        assert server.digest == here.server.digest

"""A change of the frozen weights, as large as the model, to a client whose method makes none."""

import forge_server
import torch

from fedsrd import wire
from fedsrd.core.tensors import GlobalState, SparseTensor, initial_tensors
from fedsrd.federation import snapshot
from fedsrd.federation.messages import Snapshot, Sync

MESSAGE = r"a change of the frozen weights: this method makes none"


def strike() -> None:
    victim = forge_server.client("fedavg", version=None)
    table = snapshot.base_table(forge_server.TABLE)
    state = GlobalState(initial_tensors(forge_server.TABLE, 0), {}, 5)
    taken = snapshot.take(state, forge_server.TABLE)
    change = {spec.name: SparseTensor.from_dense(torch.zeros(spec.shape)) for spec in table.specs}
    base = wire.encode_delta(change, table, wire.Kind.SNAPSHOT, 5, 5)
    victim.sync(Sync(snapshot=Snapshot(5, taken.payload, base, state.digest)))


if __name__ == "__main__":
    forge_server.show(__file__, strike, MESSAGE)

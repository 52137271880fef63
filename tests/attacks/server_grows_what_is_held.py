"""A broadcast for larger tensors than those of the state that the client holds, where the server names the shapes."""

import forge_server

from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import GlobalState, initial_tensors
from fedsrd.federation.messages import Broadcast, Sync

MESSAGE = r"a broadcast for other tensors than those of the state held here"
GROWN = table_of([LoraModule("q", 1 << 24, 1 << 24, 64), LoraModule("v", 20, 90, 2)])


def strike() -> None:
    victim = forge_server.client("fedavg", GROWN, version=None, knows_model=False)
    victim.restore(GlobalState(initial_tensors(forge_server.TABLE, 0)))
    victim.sync(Sync(broadcasts=(Broadcast(1, 1, b"", "0" * 64, 1),)))


if __name__ == "__main__":
    forge_server.show(__file__, strike, MESSAGE)

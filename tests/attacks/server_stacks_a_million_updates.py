"""A broadcast of a million stacked updates, all alike, in a hundred bytes."""

import forge_server
from forge import WHOLE, forge, one_symbol, tensors

from fedsrd.federation.messages import Broadcast, Sync
from fedsrd.methods.flora import stacked_table

MESSAGE = r"a broadcast of 1048576 updates in \d+ bytes, with 398458880 elements: expected at most \d+"


def strike() -> None:
    table = stacked_table(forge_server.TABLE, 1 << 20)
    body = tensors(WHOLE, WHOLE, WHOLE, WHOLE) + b"\1" + one_symbol(0x7E) + bytes(4) + one_symbol(2)
    payload = forge(body, kind=2, values=6, block=(1 << 32) - 1, digest=table.digest)
    message = Broadcast(3, 3, payload, "0" * 64, 1 << 20)
    forge_server.client("flora", version=2).sync(Sync(broadcasts=(message,)))


if __name__ == "__main__":
    forge_server.show(__file__, strike, MESSAGE)

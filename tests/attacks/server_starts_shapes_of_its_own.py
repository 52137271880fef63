"""A start of 64 bytes, for shapes that the server itself has named to a client whose own code trains: 8 GiB."""

import forge_server

from fedsrd.core.lora import LoraModule, table_of
from fedsrd.federation.messages import Sync

MESSAGE = r"a start, which a few bytes expand to the server's 2147483648 elements: expected the whole state"
TABLE = table_of([LoraModule("q", 1 << 24, 1 << 24, 64)])


def strike() -> None:
    victim = forge_server.client("fedavg", TABLE, version=None, knows_model=False)
    victim.sync(Sync(forge_server.start(TABLE)))


if __name__ == "__main__":
    forge_server.show(__file__, strike, MESSAGE)

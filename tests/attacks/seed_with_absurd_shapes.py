"""A draw for a sender's own table of 2^60 elements: a few bytes that ask for exabytes."""

import struct

from forge import DRAWN, RAW_FLOATS, forge, show

from fedsrd.core.lora import LoraModule, table_of

MESSAGE = r"the sender adapts another model"


def payload() -> bytes:
    absurd = table_of([LoraModule("q", 1 << 40, 1 << 40, 1 << 20)])
    return forge(bytes([DRAWN]) + struct.pack("<QI", 7, 1 << 31) + RAW_FLOATS, digest=absurd.digest)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

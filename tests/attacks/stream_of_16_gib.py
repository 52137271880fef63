"""A stream that declares 2^32 - 1 words and brings two."""

import struct

from forge import LISTED, NOT, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"positions at byte .*: needs 17179869180 bytes"


def payload() -> bytes:
    counts = struct.pack("<2Q", 1, 1)
    lie = stream(0, 0, declared=(1 << 32) - 1)
    return forge(tensors(LISTED, NOT, NOT, NOT) + one_symbol(0) + counts + lie + floats(1.0), positions=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

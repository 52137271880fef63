"""A class of positions that declares 2^63 elements, for a reader that allocates first."""

import struct

from forge import LISTED, NOT, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"position class 0: 9223372036854775808 of 6 elements"


def payload() -> bytes:
    counts = struct.pack("<2Q", 1 << 63, 1 << 63)
    return forge(tensors(LISTED, NOT, NOT, NOT) + one_symbol(0) + counts + stream(0, 0) + floats(1.0), positions=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

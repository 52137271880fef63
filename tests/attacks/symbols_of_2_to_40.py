"""One element, but 2^40 symbols that skip ahead to it: a few bytes that would keep a decoder busy for hours."""

import struct

from forge import LISTED, NOT, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"position class 0: 1 of 6 elements in 1099511627776 symbols"


def payload() -> bytes:
    counts = struct.pack("<2Q", 1, 1 << 40)
    return forge(tensors(LISTED, NOT, NOT, NOT) + one_symbol(0) + counts + stream(0, 0) + floats(1.0), positions=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

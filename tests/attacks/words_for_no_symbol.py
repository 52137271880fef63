"""A class of positions without elements, whose stream has a word for none of them."""

import struct

from forge import LISTED, NOT, WHOLE, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"positions: the stream goes on after its last symbol"


def payload() -> bytes:
    counts = struct.pack("<2Q", 0, 0)
    return forge(
        tensors(LISTED, NOT, WHOLE, NOT) + one_symbol(0) + counts + stream(0xDEADBEEF) + floats(1.0, 1.0), positions=2
    )


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

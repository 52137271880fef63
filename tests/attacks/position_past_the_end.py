"""A gap that leads past the last element of its class, to write beyond the matrix."""

import struct

from forge import LISTED, NOT, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"a gap leads to element .* of 6|0 elements where 1 were counted"


def payload() -> bytes:
    counts = struct.pack("<2Q", 1, 1)
    # The highest code selects the last symbol, which skips 255 places.
    far = stream(0xFFFFFFFF, 0)
    return forge(tensors(LISTED, NOT, NOT, NOT) + one_symbol(0) + counts + far + floats(1.0), positions=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

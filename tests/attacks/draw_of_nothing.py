"""A draw of an empty range: no element, and yet a tensor that travels."""

import struct

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"draw: keeps no element: words from 5 to 4"


def payload() -> bytes:
    return forge(tensors(DRAWN, NOT, NOT, NOT) + struct.pack("<BQII", 1, 7, 5, 4) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

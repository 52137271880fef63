"""A draw with threshold zero: no element, and yet a tensor that travels."""

import struct

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"draw: keeps no element"


def payload() -> bytes:
    return forge(tensors(DRAWN, NOT, NOT, NOT) + struct.pack("<QI", 7, 0) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""A histogram whose weights sum to zero: a division by zero."""

import struct

from forge import NOT, RAW_FLOATS, WHOLE, forge, show, stream, tensors

MESSAGE = r"each with a weight above 0"


def payload() -> bytes:
    empty = bytes([1, 3, 4]) + struct.pack("<2H", 0, 0)
    scales = RAW_FLOATS + struct.pack("<H", 0x3F80)
    return forge(tensors(WHOLE, NOT, NOT, NOT) + scales + empty + stream(0, 0), values=5, block=6)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

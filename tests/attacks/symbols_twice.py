"""A histogram that lists one symbol twice, so that one stream has two readings."""

import struct

from forge import NOT, RAW_FLOATS, WHOLE, forge, show, stream, tensors

MESSAGE = r"expected 2 different symbols in order"


def payload() -> bytes:
    twice = bytes([1, 7, 7]) + struct.pack("<2H", 1, 1)
    scales = RAW_FLOATS + struct.pack("<H", 0x3F80)
    return forge(tensors(WHOLE, NOT, NOT, NOT) + scales + twice + stream(0, 0), values=5, block=6)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

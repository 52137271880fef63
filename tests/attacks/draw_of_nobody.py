"""A draw that no tensor is of: bytes to hide something in."""

import struct

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"draw 1: no tensor is of it"
HALVES = struct.pack("<BQIIQII", 2, 7, 0, (1 << 31) - 1, 7, 1 << 31, (1 << 32) - 1)


def payload() -> bytes:
    return forge(tensors(DRAWN, DRAWN, NOT, NOT) + HALVES + bytes([0, 0]) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

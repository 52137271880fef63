"""A tensor of a draw that is not in the list: what it changes would be anybody's guess."""

import struct

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"q\.lora_A\.weight: of draw 2, and there are 2, from 0"
HALVES = struct.pack("<BQIIQII", 2, 7, 0, (1 << 31) - 1, 7, 1 << 31, (1 << 32) - 1)


def payload() -> bytes:
    return forge(tensors(DRAWN, DRAWN, DRAWN, NOT) + HALVES + bytes([0, 2, 1]) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""A draw whose last word lies before its first: no element, and yet a tensor that travels."""

import struct

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"draw: words 8 to 7: keeps no element"


def payload() -> bytes:
    return forge(tensors(DRAWN, NOT, NOT, NOT) + struct.pack("<QII", 7, 8, 7) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""Version 3, whose draws have no count and begin at zero: a reader that took it would change the wrong elements."""

import struct

from forge import DRAWN, NOT, floats, forge, show, tensors

MESSAGE = r"format version 3: this reader knows version 4; upgrade the older end"


def payload() -> bytes:
    everything = struct.pack("<QI", 7, (1 << 32) - 1)
    return forge(tensors(NOT, NOT, DRAWN, NOT) + everything + floats(1.0, 2.0), version=3)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

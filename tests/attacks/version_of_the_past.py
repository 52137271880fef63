"""Version 2, which drew other elements with the same seed: a reader that took it would change the wrong ones."""

import struct

from forge import DRAWN, NOT, floats, forge, show, tensors

MESSAGE = r"format version 2: this reader knows version 3; upgrade the older end"


def payload() -> bytes:
    everything = struct.pack("<QI", 7, (1 << 32) - 1)
    return forge(tensors(NOT, NOT, DRAWN, NOT) + everything + floats(1.0, 2.0), version=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

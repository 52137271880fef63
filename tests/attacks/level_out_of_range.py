"""An int4 level of +193: an update two hundred times as long as its scale allows."""

import struct

from forge import NOT, RAW_FLOATS, WHOLE, forge, one_symbol, show, tensors

MESSAGE = r"values: level 200 of 15"


def payload() -> bytes:
    scales = RAW_FLOATS + struct.pack("<H", 0x3F80)
    return forge(tensors(WHOLE, NOT, NOT, NOT) + scales + one_symbol(200), values=5, block=6)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

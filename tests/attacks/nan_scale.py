"""A scale that is no number: one block would turn every replica into NaN."""

import struct

from forge import NOT, RAW_FLOATS, WHOLE, forge, one_symbol, show, tensors

MESSAGE = r"scales: expected finite, non-negative numbers"


def payload() -> bytes:
    scales = RAW_FLOATS + struct.pack("<H", 0x7FC0)
    return forge(tensors(WHOLE, NOT, NOT, NOT) + scales + one_symbol(9), values=5, block=6)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

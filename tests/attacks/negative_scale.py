"""A negative scale: as good as another sign of every level, so two payloads would say the same."""

import struct

from forge import NOT, RAW_FLOATS, WHOLE, forge, one_symbol, show, tensors

MESSAGE = r"scales: expected finite, non-negative numbers"


def payload() -> bytes:
    scales = RAW_FLOATS + struct.pack("<H", 0xBF80)
    return forge(tensors(WHOLE, NOT, NOT, NOT) + scales + one_symbol(14), values=5, block=6)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

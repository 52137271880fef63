"""A stream with words that no symbol needs: room for anything, in a payload that reads well."""

import struct

from forge import NOT, WHOLE, forge, show, stream, tensors

MESSAGE = r"values \(exponents\): the stream goes on after its last symbol"
SYMBOLS = bytes([1, 0x7E, 0x7F]) + struct.pack("<2H", 1, 1)


def payload() -> bytes:
    section = b"\1" + SYMBOLS + stream(*[0] * 5000) + bytes(3 * 10)
    return forge(tensors(NOT, WHOLE, NOT, NOT) + section)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

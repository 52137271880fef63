"""A vector of five elements whose one class counts six: without the table a reader could not know, and would write
past it.
"""

import struct

from forge import LISTED, floats, forge, one_symbol, show, stream, tensors

from fedsrd.core.tensors import TensorSpec, TensorTable

MESSAGE = r"position class 0: 6 of 5 elements in 6 symbols"

TABLE = TensorTable((TensorSpec("scale", (5,)),))


def payload() -> bytes:
    counts = struct.pack("<2Q", 6, 6)
    body = tensors(LISTED) + one_symbol(0) + counts + stream(0, 0) + floats(*range(1, 7))
    return forge(body, positions=2, digest=TABLE.digest)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE, TABLE)

"""Integers with blocks of zero elements: a division by zero, or infinitely many scales."""

from forge import NOT, RAW_FLOATS, WHOLE, forge, one_symbol, show, tensors

MESSAGE = r"block 0 with int4"


def payload() -> bytes:
    return forge(tensors(WHOLE, NOT, NOT, NOT) + RAW_FLOATS + one_symbol(9), values=5, block=0)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

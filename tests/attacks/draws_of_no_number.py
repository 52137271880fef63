"""A drawn tensor, and no draw: the list of draws has none."""

from forge import DRAWN, NOT, RAW_FLOATS, forge, show, tensors

MESSAGE = r"draws: 0 for 1 drawn tensors: expected 1 to as many draws as tensors"


def payload() -> bytes:
    return forge(tensors(DRAWN, NOT, NOT, NOT) + bytes([0]) + RAW_FLOATS)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

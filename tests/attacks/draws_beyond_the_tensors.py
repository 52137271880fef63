"""255 draws for one tensor, in a payload that has none of them."""

from forge import DRAWN, NOT, forge, show, tensors

MESSAGE = r"draws: 255 for 1 drawn tensors: expected 1 to as many draws as tensors"


def payload() -> bytes:
    return forge(tensors(NOT, NOT, NOT, DRAWN) + bytes([255]))


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""Ones after the last element of a bitmap: positions past the end in the paper's format."""

from forge import LISTED, NOT, floats, forge, show, tensors

MESSAGE = r"bitmap of q.lora_B.weight: spare bits are set after its 6 elements"


def payload() -> bytes:
    return forge(tensors(LISTED, NOT, NOT, NOT) + bytes([0b11000001]) + floats(1.0, 2.0, 3.0), positions=1)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

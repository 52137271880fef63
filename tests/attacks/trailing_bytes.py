"""A second payload hidden behind the first."""

from forge import NOT, WHOLE, floats, forge, show, tensors

MESSAGE = r"8 bytes too many after the last value"


def payload() -> bytes:
    return forge(tensors(NOT, NOT, WHOLE, NOT) + floats(1.0, 2.0) + bytes(8))


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""A rank component in class 200 of 32, to index past a table of classes."""

from forge import LISTED, NOT, floats, forge, one_symbol, show, stream, tensors

MESSAGE = r"position class 200: there are 32"


def payload() -> bytes:
    return forge(tensors(LISTED, NOT, NOT, NOT) + one_symbol(200) + stream(0, 0) + floats(1.0), positions=2)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""A format version that this reader does not know."""

from forge import NOT, forge, show, tensors

MESSAGE = r"format version 5: this reader knows version 4"


def payload() -> bytes:
    return forge(tensors(NOT, NOT, NOT, NOT), values=0, version=5)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

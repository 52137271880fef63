"""A format version that this reader does not know."""

from forge import NOT, forge, show, slots

MESSAGE = r"format version 3: this reader knows version 2"


def payload() -> bytes:
    return forge(slots(NOT, NOT, NOT, NOT), values=0, version=3)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

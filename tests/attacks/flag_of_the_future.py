"""A flag that this version does not know, hoping that it is skipped."""

from forge import NOT, forge, show, tensors

MESSAGE = r"flags 128 .* knows none"


def payload() -> bytes:
    return forge(tensors(NOT, NOT, NOT, NOT), flags=128, values=0)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""Half of the values, sealed as if that were all."""

from forge import NOT, WHOLE, floats, forge, show, tensors

MESSAGE = r"values at byte .*: needs 24 bytes, 12 are left: truncated"


def payload() -> bytes:
    return forge(tensors(WHOLE, NOT, NOT, NOT) + floats(1.0, 2.0, 3.0))


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

"""A tensor that travels listed, in a list without elements: whoever divides by what travels divides by zero."""

from forge import LISTED, NOT, floats, forge, show, tensors

MESSAGE = r"q\.lora_B\.weight: something of it travels, and yet no element is listed or drawn"


def payload() -> bytes:
    return forge(tensors(LISTED, NOT, NOT, NOT) + b"\0" + floats(), positions=1)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

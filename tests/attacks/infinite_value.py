"""An infinity among float32 values."""

from forge import NOT, WHOLE, floats, forge, show, tensors

MESSAGE = r"v.lora_B.weight: a value is NaN or infinite"


def payload() -> bytes:
    return forge(tensors(NOT, NOT, WHOLE, NOT) + floats(1.0, float("-inf")))


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE)

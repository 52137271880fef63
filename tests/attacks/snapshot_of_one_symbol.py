"""A whole state in a few bytes: ternary numbers that are all alike, under one scale a tensor."""

from forge import WHOLE, forge, one_symbol, show, tensors

from fedsrd.core.lora import LoraModule, table_of

MESSAGE = r"a snapshot: expected whole tensors, as float32"
TABLE = table_of([LoraModule("q", 1 << 16, 1 << 16, 64), LoraModule("v", 1 << 16, 1 << 16, 64)])


def payload() -> bytes:
    scales = b"\1" + one_symbol(0x7E) + bytes(4)
    values = one_symbol(2)
    body = tensors(WHOLE, WHOLE, WHOLE, WHOLE) + scales + values
    return forge(body, kind=3, values=6, block=(1 << 32) - 1, digest=TABLE.digest)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE, TABLE)

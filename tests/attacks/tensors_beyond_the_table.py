"""Bits of tensors that the table does not have."""

from forge import floats, forge, show

from fedsrd.core.lora import LoraModule, table_of

MESSAGE = r"tensors: bits are set after those of the 2 tensors"

TABLE = table_of([LoraModule("q", 3, 5, 2)])


def payload() -> bytes:
    return forge(bytes([0b01000000]) + floats(1.0), digest=TABLE.digest)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE, TABLE)

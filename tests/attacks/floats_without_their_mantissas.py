"""Exponents that are all alike take four bytes for any number of floats; the mantissas behind them are missing."""

from forge import WHOLE, forge, one_symbol, show, tensors

from fedsrd.core.lora import LoraModule, table_of

MESSAGE = r"values at byte 42: needs 25165824 bytes, 10 are left"
TABLE = table_of([LoraModule("q", 1 << 16, 1 << 16, 64)])


def payload() -> bytes:
    return forge(tensors(WHOLE, WHOLE) + b"\1" + one_symbol(0x7E) + bytes(6), kind=3, digest=TABLE.digest)


if __name__ == "__main__":
    show(__file__, payload(), MESSAGE, TABLE)

"""Updates as packed integers that a server adds up without looking at one; masked ones look the same."""

from fedsrd.core.tensors import TensorTable
from fedsrd.errors import PayloadError
from fedsrd.wire.envelope import Header, Kind, open_payload, seal


def encode_sum(words: bytes, bits: int, table: TensorTable, round_number: int, version: int) -> bytes:
    """Packed words of so many bits an integer as a payload.

    Raises:
        ValueError: a number does not fit the header.
    """
    return seal(Header(Kind.SUM, 0, 0, bits, round_number, version, table.digest), words)


def decode_sum(payload: bytes, size: int, bits: int, table: TensorTable, round_number: int, version: int) -> memoryview:
    """The words of a payload, a view of it.

    Args:
        payload: the bytes.
        size: of the words, in bytes, as the receiver knows it.
        bits: of an integer, likewise.
        table: that of updates.
        round_number: that is closed.
        version: that updates build on.

    Raises:
        PayloadError: it is damaged, for another adapter, of another kind, round, version, width or length.
    """
    header, reader = open_payload(payload, table)
    if (header.kind, header.round, header.version) != (Kind.SUM, round_number, version):
        raise PayloadError(
            f"a {header.kind.name.lower()} of round {header.round} for version {header.version}: expected a sum of "
            f"round {round_number} for version {version}"
        )
    if (header.positions, header.values, header.block) != (0, 0, bits):
        raise PayloadError(f"integers of {header.block} bits: expected {bits}")
    words = reader.take(size, "integers")
    reader.end()
    return words

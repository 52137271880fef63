"""Bytes: everything that crosses between client and server. Knows shapes, knows no method. See docs/wire-format.md."""

from fedsrd.wire.coding import Coding
from fedsrd.wire.envelope import FORMAT_VERSION, Header, Kind, decode_start, encode_start, read_header
from fedsrd.wire.payload import Decoded, Travels, decode, decode_delta, encode_delta, is_finite

__all__ = [
    "FORMAT_VERSION",
    "Coding",
    "Decoded",
    "Header",
    "Kind",
    "Travels",
    "decode",
    "decode_delta",
    "decode_start",
    "encode_delta",
    "encode_start",
    "is_finite",
    "read_header",
]

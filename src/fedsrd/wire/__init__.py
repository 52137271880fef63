"""Bytes: everything that crosses between client and server. Knows tensors, no method. See docs/wire-format.md."""

from fedsrd.wire.envelope import FORMAT_VERSION, Header, Kind, decode_start, encode_start, read_header
from fedsrd.wire.options import SumOptions, WireOptions
from fedsrd.wire.payload import Decoded, Quantised, Travels, decode, decode_delta, encode_delta, is_finite, quantise
from fedsrd.wire.sums import decode_sum, encode_sum

__all__ = [
    "FORMAT_VERSION",
    "Decoded",
    "Header",
    "Kind",
    "Quantised",
    "SumOptions",
    "Travels",
    "WireOptions",
    "decode",
    "decode_delta",
    "decode_start",
    "decode_sum",
    "encode_delta",
    "encode_start",
    "encode_sum",
    "is_finite",
    "quantise",
    "read_header",
]

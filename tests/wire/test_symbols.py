"""The entropy coder: tables made of integers, streams near the entropy, nothing wrong in them that hangs."""

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.errors import PayloadError
from fedsrd.wire import symbols
from fedsrd.wire.reader import Reader


def round_trip(parts):
    data = symbols.encode_histogram(parts)
    reader = Reader(memoryview(data))
    found = symbols.decode_histogram(reader, sum(map(len, parts)), "test")
    reader.end()
    assert found.tolist() == [int(symbol) for part in parts for symbol in part]
    return data


@given(st.lists(st.lists(st.integers(0, 255), max_size=40), max_size=4))
def test_histogram_sections_round_trip(parts):
    parts = [np.array(part, dtype=np.uint8) for part in parts]
    data = round_trip(parts)
    assert reference.Bytes(data).histogram(sum(map(len, parts))) == [int(s) for part in parts for s in part]


@given(st.lists(st.integers(1, 65535), min_size=2, max_size=256))
def test_tables_are_the_specified_ones(weights):
    expected = [1 + w * (2**24 - len(weights)) // sum(weights) for w in weights]
    expected[weights.index(max(weights))] += 2**24 - sum(expected)
    found = symbols.frequencies(np.array(weights))
    assert found.tolist() == expected
    assert found.min() >= 1
    assert found.sum() == symbols.TOTAL


@settings(deadline=None)
@given(st.integers(1, 2**40), st.floats(0, 1))
def test_gap_tables_are_the_specified_ones(elements, share):
    ones = min(round(elements * share), elements)
    found = symbols.gap_frequencies(ones, elements)
    assert found.tolist() == reference.gap_table(ones, elements)
    assert found.min() >= 1
    assert found.sum() == symbols.TOTAL


def test_the_package_takes_our_tables_unchanged():
    """The bytes are those of our specification only if constriction does not round the table on its own."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 17, 256):
        weights = rng.integers(1, 65536, size)
        part = rng.integers(0, size, 500).astype(np.uint8)
        encoder, table = symbols.Encoder(), symbols.frequencies(weights)
        encoder.write(part, table)
        stream = reference.Bytes(encoder.bytes()).stream()
        assert [stream.symbol(table.tolist()) for _ in part] == part.tolist()


@pytest.mark.parametrize("entropy", [0.01, 1.0, 4.0])
def test_streams_are_near_the_entropy(entropy):
    rng = np.random.default_rng(1)
    # A geometric distribution with about that entropy.
    p = {0.01: 0.999, 1.0: 0.5, 4.0: 0.15}[entropy]
    part = np.minimum(rng.geometric(p, 200_000) - 1, 255).astype(np.uint8)
    bits = symbols.entropy(np.bincount(part))
    assert bits / len(part) == pytest.approx(
        -sum(x * math.log2(x) for x in np.bincount(part)[np.bincount(part) > 0] / len(part))
    )
    assert 8 * len(round_trip([part])) < 1.002 * bits + 2000


def test_a_million_symbols_go_through_in_chunks():
    part = np.random.default_rng(2).integers(0, 3, (1 << 20) + 5).astype(np.uint8)
    round_trip([part, part[:7]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs 1 bytes, 0 are left"),
        (b"\x01\x05", "needs 2 bytes"),
        (b"\x01\x05\x05\x01\x00\x01\x00", "2 different symbols in order"),
        (b"\x01\x06\x05\x01\x00\x01\x00", "2 different symbols in order"),
        (b"\x01\x05\x06\x00\x00\x01\x00", "each with a weight above 0"),
        (b"\x01\x05\x06\x01\x00\x01\x00\xff\xff\xff\xff", "needs 17179869180 bytes, 0 are left"),
    ],
)
def test_wrong_sections_are_refused(data, message):
    with pytest.raises(PayloadError, match=message):
        symbols.decode_histogram(Reader(memoryview(data)), 10, "test")


@given(st.binary(max_size=40))
def test_a_stream_of_noise_gives_symbols_or_is_refused(noise):
    words = noise[: len(noise) // 4 * 4]
    data = (len(words) // 4).to_bytes(4, "little") + words
    table = symbols.frequencies(np.array([5, 1, 1]))
    try:
        found = symbols.Decoder(Reader(memoryview(data)), "noise").read(300, table)
    except PayloadError:
        return
    assert len(found) == 300
    assert found.max() <= 2

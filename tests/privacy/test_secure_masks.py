"""What a server sees is uniform until enough clients help; and what it sees of one session says nothing of another."""

import base64
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from secure import Run, session_of

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy import packed
from fedsrd.privacy.packed import BLOCK, Layout, unpack
from fedsrd.privacy.secure import crypto

DEVIATIONS = 8
"""Standard deviations of a chi-square statistic beyond which fields are not uniform: 1e-13 by chance."""


def chi_square(fields, values):
    """How many standard deviations the statistic lies above its mean, values - 1."""
    expected = len(fields) / values
    statistic = np.sum((np.bincount(fields, minlength=values) - expected) ** 2) / expected
    return (statistic - (values - 1)) / np.sqrt(2 * (values - 1))


def zeros_masked(nonce="0" * 32, clients=3, bits=4, count=40000):
    """All masked inputs of clients whose values are zero, and the run."""
    run = Run(session_of(clients, clients // 2 + 1, bits, count, nonce=nonce), signed=False)
    run.keys()
    run.shares()
    run.masked(dict.fromkeys(run.session.clients, np.zeros(count, int)))
    fields = {name: unpack(words, run.session.layout, centred=False) for name, words in run.sent.items()}
    return fields, run


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_the_masked_input_of_a_client_is_uniform(bits):
    fields, _ = zeros_masked(bits=bits)
    for one in fields.values():
        assert chi_square(one, 1 << bits) < DEVIATIONS
        # Neighbouring fields of a word and of the vector, together.
        pairs = one[:-1].astype(int) << bits | one[1:]
        assert chi_square(pairs, 1 << 2 * bits) < DEVIATIONS


def test_masked_inputs_of_two_clients_and_of_two_sessions_share_nothing():
    one, _ = zeros_masked()
    two, _ = zeros_masked("1" * 32)
    seen = [*one.values(), *two.values()]
    for left, right in itertools.combinations(seen, 2):
        assert chi_square((left - right) % 16, 16) < DEVIATIONS
    # Nor do sums of some of one session: only all pairwise masks together cancel, and then the self masks stay.
    for some in (list(one.values())[:2], list(one.values())):
        assert chi_square(sum(some) % 16, 16) < DEVIATIONS
    assert not any((left == right).all() for left, right in itertools.combinations(seen, 2))


def test_before_enough_reveal_the_accumulator_is_uniform():
    _, run = zeros_masked(clients=4)
    answers = run.answers()
    some = dict(list(answers.items())[:2])
    with pytest.raises(SecureAggregationError, match="2 of at least 3"):
        run.server.reveal(some)
    with pytest.raises(SecureAggregationError, match=r"expected 3 right ones|does not follow"):
        run.server.total()
    layout = run.session.layout
    held = packed.from_bytes(run.server.to_bytes().partition(b"\n")[2], layout)
    assert chi_square(unpack(held, layout, centred=False), 16) < DEVIATIONS
    # Any two shares say nothing: there is a third for every secret whatever.
    two = [(at + 1, answers[f"site {at}"].self_shares["site 3"]) for at in (0, 1)]
    found = {crypto.combine([*two, (4, bytes([guess]) * 16)]) for guess in range(20)}
    assert len(found) == 20


def test_what_a_client_stores_is_not_what_it_says():
    """No secret of a client leaves it in the clear."""
    _, run = zeros_masked(clients=3)
    state = run.clients["site 0"]._state
    said = b"".join(
        [
            state.keys.write(),
            *(inbox.write() for inbox in run.inboxes.values()),
            run.clients["site 0"].reveal(run.survivors).write(),
            run.server.to_bytes(),
        ]
    )
    for secret in (state.seal_seed, state.mask_seed, state.self_seed):
        assert base64.urlsafe_b64encode(secret).rstrip(b"=") not in said
        assert secret not in said


@given(
    st.integers(1, 32),
    st.sampled_from([1, 2, 3, BLOCK, 2 * BLOCK + 1]),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
)
def test_masks_are_the_ciphers_stream_field_by_field(bits, words, plus, minus):
    layout = Layout(bits, words * (64 // bits))
    random = np.random.default_rng(words)
    values = random.integers(0, 1 << bits, layout.count)
    found = packed.pack(values, layout)
    crypto.mask_(found, layout, plus, minus)
    total = values.astype(object) if bits > 30 else values
    for sign, keys in ((1, plus), (-1, minus)):
        for key in keys:
            cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
            stream = np.frombuffer(cipher.update(bytes(8 * words)), "<u8") & np.uint64(layout.used)
            total = total + sign * unpack(stream, layout, centred=False).astype(np.int64)
    assert layout.holds(found)
    assert np.array_equal(unpack(found, layout, centred=False), total % (1 << bits))


@settings(max_examples=40)
@given(st.binary(min_size=16, max_size=16), st.integers(1, 5), st.integers(0, 3), st.data())
def test_a_secret_comes_back_and_liars_are_found(secret, threshold, spare, data):
    holders = [f"h{i}" for i in range(threshold + spare)]
    parts = crypto.split(secret, threshold, len(holders))
    shares = {name: (point, part) for point, (name, part) in enumerate(zip(holders, parts, strict=True), 1)}
    liars = set(data.draw(st.permutations(holders))[: data.draw(st.integers(0, spare))])
    for name in liars:
        shares[name] = (shares[name][0], bytes(byte ^ 1 for byte in shares[name][1]))
    doubted = set(data.draw(st.permutations(holders))[:2])
    found, named = crypto.reconstruct(shares, threshold, lambda seed: seed == secret, doubted)
    assert found == secret
    first = set(sorted(holders, key=lambda name: (name in doubted, name))[:threshold])
    if not first & liars:
        assert not named
    elif len(liars) == 1:
        assert named == liars
    # More liars than are named can agree on a wrong story.
    assert named <= liars or len(named) < len(liars)


def test_too_few_right_shares_give_nothing():
    parts = crypto.split(b"s" * 16, 3, 4)
    shares = {f"h{point}": (point, part) for point, part in enumerate(parts, 1)}
    assert crypto.reconstruct(dict(list(shares.items())[:2]), 3, lambda seed: True, set()) == (None, set())
    for name in ("h1", "h2"):
        shares[name] = (shares[name][0], bytes(16))
    assert crypto.reconstruct(shares, 3, lambda seed: seed == b"s" * 16, set()) == (None, set())


def test_more_sets_than_can_be_tried_are_tried_at_random():
    """Ten of thirty: 30 million sets."""
    parts = crypto.split(b"s" * 16, 10, 30)
    shares = {f"h{point:02}": (point, part) for point, part in enumerate(parts, 1)}
    shares["h01"] = (1, bytes(16))
    found, named = crypto.reconstruct(shares, 10, lambda seed: seed == b"s" * 16, set())
    assert found == b"s" * 16
    assert named == {"h01"}

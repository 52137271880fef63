"""The cryptography: libraries' primitives, put together and bound to a session.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-GCM and AES-256-CTR (NIST SP 800-38D, 800-38A) from `cryptography`;
Shamir's sharing over GF(2^128) from `pycryptodome`. A secret that is shared is a seed of 16 bytes.
"""

import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy.packed import BLOCK, Adder, Layout, Words
from fedsrd.privacy.secure.session import digest, statement

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SEED_BYTES = 16
_NONCE_BYTES = 12
ATTEMPTS = 200
"""Sets of shares that are tried before a secret counts as lost: some seconds."""


def needed() -> None:
    """Raises SecureAggregationError where a library is missing."""
    try:
        import Crypto.Protocol.SecretSharing  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError as error:
        raise SecureAggregationError(
            f"secure aggregation needs the packages cryptography and pycryptodome ({error}): "
            'pip install "fedsrd[secure]"'
        ) from None


def derive(secret: bytes, purpose: str, *parts: bytes | str) -> bytes:
    """HKDF-SHA256 to 32 bytes."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=None, info=statement(purpose, *parts)).derive(secret)


def private_key(seed: bytes, purpose: str, session: bytes) -> "X25519PrivateKey":
    """The X25519 key that follows from a seed."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(derive(seed, purpose, session))


def public_bytes(key: "X25519PrivateKey") -> bytes:
    """The other half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def agree(key: "X25519PrivateKey", theirs: bytes, whose: str) -> bytes:
    """The secret that two keys share, 32 bytes.

    Raises:
        SecureAggregationError: theirs is no key but one of the points that give zero.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        return key.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise SecureAggregationError(f"the public key of {whose} is none: expected a point of X25519") from None


def commitment(seed: bytes, session: bytes, name: str) -> bytes:
    """What a client says of its self-mask seed before it masks, 32 bytes."""
    return digest("self-mask", session, name, seed)


def seal(shared: bytes, context: bytes, sender: str, receiver: str, text: bytes) -> bytes:
    """AES-256-GCM of two shares for one receiver: nonce, ciphertext, tag."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    key = derive(shared, "seal", context, sender, receiver)
    return nonce + AESGCM(key).encrypt(nonce, text, statement("shares", context, sender, receiver))


def unseal(shared: bytes, context: bytes, sender: str, receiver: str, sealed: bytes) -> bytes | None:
    """Two shares (32 bytes), or None if this is not what this sender has sealed for this receiver in this session."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = derive(shared, "seal", context, sender, receiver)
    bound = statement("shares", context, sender, receiver)
    try:
        text = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        return None
    return text if len(text) == 2 * SEED_BYTES else None


def self_mask_key(seed: bytes, context: bytes, name: str) -> bytes:
    """The key of a client's self mask."""
    return derive(seed, "self-mask", context, name)


def pair_mask_key(key: "X25519PrivateKey", context: bytes, own: str, other: str, theirs: bytes) -> bytes:
    """The key of the mask of two clients: the same from both sides."""
    return derive(agree(key, theirs, other), "pair", context, *sorted((own, other)))


def mask_(words: Words, layout: Layout, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Adds and subtracts the masks of these keys in place: AES-256-CTR's stream modulo 2^bits a field.

    Block by block for all keys, so that the words pass through the cache once.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    streams = [
        (Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), sign)
        for sign, keys in ((True, plus), (False, minus))
        for key in keys
    ]
    adder = Adder(layout)
    zeros = memoryview(bytes(8 * BLOCK))
    # `update_into` asks for room for one block of the cipher more than it writes.
    stream = bytearray(8 * BLOCK + 16)
    for at in range(0, len(words), BLOCK):
        block = words[at : at + BLOCK]
        size = 8 * len(block)
        mask = np.frombuffer(stream, np.uint64, len(block))
        for cipher, sign in streams:
            cipher.update_into(zeros[:size], stream)
            (adder.add if sign else adder.subtract)(block, mask)


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shamir's shares, 16 bytes each, for points 1 to `holders`."""
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, holders, secret, False)]


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """The secret of exactly as many shares (point, share) as its threshold."""
    from Crypto.Protocol.SecretSharing import Shamir

    return Shamir.combine(list(shares), False)


def reconstruct(
    shares: Mapping[str, tuple[int, bytes]], threshold: int, right: Callable[[bytes], bool], doubted: set[str]
) -> tuple[bytes | None, set[str]]:
    """A shared secret, and who gave a wrong share of it.

    Args:
        shares: point and share by holder.
        threshold: shares that make the secret.
        right: whether it is the secret.
        doubted: holders whose shares are taken last.

    Returns:
        The secret (None: too few shares, or no set of the first ATTEMPTS gave it) and who lied, where it takes fewer
        liars than any other reading of the shares. Shares beyond the first threshold of them are looked at only if need
        be.
    """
    holders = sorted(shares, key=lambda name: (name in doubted, name))
    if len(holders) < threshold:
        return None, set()
    for number, chosen in enumerate(_sets(holders, threshold)):
        secret = combine([shares[name] for name in chosen])
        if not right(secret):
            continue
        if not number:
            return secret, set()
        rest = [shares[name] for name in chosen[1:]]
        others = [name for name in holders if name not in chosen]
        wrong = {name for name in others if combine([*rest, shares[name]]) != secret}
        # Liars that agree among themselves can give the right secret with some of the others, and make honest ones look
        # wrong. Two polynomials with this secret share at most threshold - 2 further points: so it would take that many
        # fewer than all that agree. Nobody is named where the liars would then be as few.
        agreeing = len(holders) - len(wrong)
        return secret, wrong if agreeing - (threshold - 2) > len(wrong) else set()
    return None, set()


def _sets(holders: Sequence[str], threshold: int) -> Iterator[Sequence[str]]:
    """The first so many, then other sets: all where these are few, else some at random."""
    yield holders[:threshold]
    if math.comb(len(holders), threshold) <= ATTEMPTS:
        yield from itertools.islice(itertools.combinations(holders, threshold), 1, None)
        return
    # Which sets are tried is no secret, and the same shares give the same answer.
    chance = random.Random(0)
    for _ in range(ATTEMPTS):
        yield sorted(chance.sample(holders, threshold))

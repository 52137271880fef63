"""What clients and server say to each other, phase by phase. `write()` and `read()` make bytes of them and back."""

from typing import Annotated

from pydantic import Field

from fedsrd.privacy.secure.session import Message, Name, Names, digest, statement

PublicKey = Annotated[bytes, Field(min_length=32, max_length=32)]
Share = Annotated[bytes, Field(min_length=16, max_length=16)]
Sealed = Annotated[bytes, Field(min_length=60, max_length=60)]
"""Nonce (12 bytes), two shares (32) and the tag (16) of AES-256-GCM."""
Signature = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*\z")]


class Keys(Message):
    """Phase 1, client to all: two public keys (X25519), fresh in this session.

    Attributes:
        name: whose.
        seal_key: shares for this client are sealed with it.
        mask_key: pairwise masks come from it.
        signature: of `said`, as the caller's `sign` makes it; empty where clients do not sign.
    """

    name: Name
    seal_key: PublicKey
    mask_key: PublicKey
    signature: Signature = ""

    def said(self, session: bytes) -> bytes:
        """What is signed."""
        return statement("keys", session, self.name, self.seal_key, self.mask_key)


class Shares(Message):
    """Phase 2, client to server: shares of both secrets, each pair sealed for its receiver.

    Attributes:
        name: whose.
        commitment: SHA-256 of the self-mask seed with the session, so that the server can tell a wrong reconstruction.
        sealed: by receiver; all neighbours, and nobody else.
    """

    name: Name
    commitment: Annotated[bytes, Field(min_length=32, max_length=32)]
    sealed: Annotated[dict[Name, Sealed], Field(max_length=1 << 16)]


class Inbox(Message):
    """Phase 2's answer, server to one client.

    Attributes:
        participants: all whose shares came: they mask.
        sealed: by sender; of those neighbours that are participants.
    """

    participants: Names
    sealed: Annotated[dict[Name, Sealed], Field(max_length=1 << 16)]


class Confirmation(Message):
    """Phase 4, client to all: this is the one set of survivors that I help to unmask.

    Attributes:
        name: whose.
        signature: of `said`.
    """

    name: Name
    signature: Signature

    @staticmethod
    def said(context: bytes, name: str, participants: tuple[str, ...], survivors: tuple[str, ...]) -> bytes:
        """What is signed; `context` is `context_of(session, roster)`."""
        return statement("survivors", context, name, digest("names", *participants), digest("names", *survivors))


class Reveal(Message):
    """Phase 5, client to server. Never two shares of one client.

    Attributes:
        name: whose.
        self_shares: by client: shares of the self-mask seeds of survivors.
        key_shares: by client: shares of the mask-key seeds of those that dropped.
        unreadable: whose sealed shares did not open.
    """

    name: Name
    self_shares: Annotated[dict[Name, Share], Field(max_length=1 << 16)]
    key_shares: Annotated[dict[Name, Share], Field(max_length=1 << 16)]
    unreadable: Names = ()


def context_of(session: bytes, roster: dict[str, Keys]) -> bytes:
    """SHA-256 of the session and of all keys in it, 32 bytes: what all further keys and statements are bound to."""
    parts = [part for name in sorted(roster) for part in (name, roster[name].seal_key, roster[name].mask_key)]
    return digest("roster", session, *parts)

"""What is said in the phases of secure aggregation beside the protocol's own messages, and who may say it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from fedsrd.federation.sums import Terms
from fedsrd.federation.transition import FederationConfig
from fedsrd.privacy.secure import Confirmation, Keys, Session
from fedsrd.privacy.secure.session import Message, Names

Phase = Literal["keys", "shares", "confirm", "reveal"]
"""What a client is asked for; the masked update is the answer to a `TrainTask`."""


class Opening(Message):
    """To a client: take part in this session.

    Attributes:
        session: the public parameters.
        signed: whether clients sign, and confirm one set of survivors before they reveal.
    """

    session: Session
    signed: bool


class Roster(Message):
    """To a client: everybody's keys."""

    keys: Annotated[tuple[Keys, ...], Field(max_length=1 << 16)]


class Survivors(Message):
    """To a client: whose masked updates the server has; in the end with the clients' confirmations of that."""

    survivors: Names
    confirmations: Annotated[tuple[Confirmation, ...], Field(max_length=1 << 16)] = ()


Sign = Callable[[bytes], str]
Verify = Callable[[str, str, bytes], bool]


def verifier(keys: Mapping[str, str]) -> Verify:
    """Whether (name, signature, statement) is signed by the holder of the name's public key. Unknown names are not."""
    from fedsrd.federation.remote import identity

    def is_signed(name: str, signature: str, said: bytes) -> bool:
        return name in keys and identity.is_signed(keys[name], signature, said)

    return is_signed


def about(config: FederationConfig, version: int, digest: str, terms: Terms) -> str:
    """SHA-256, in hexadecimal, of all that clients of a round must have been told alike for their sum to be one of
    likes: weights, training, method, steps and noise.
    """
    method, noise = config.method, config.noise
    told = [
        config.training,
        method.name,
        method.options.model_dump_json(),
        config.seed,
        None if config.sum is None else config.sum.model_dump_json(),
        None if noise is None else [noise[0].model_dump_json(), noise[1]],
        version,
        digest,
        terms.clients,
        list(terms.steps),
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()

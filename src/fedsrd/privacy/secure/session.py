"""One attempt to sum, as all that take part know it: who, what for, how many must stay, and how long the vector is."""

import hashlib
import json
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy.packed import Layout

Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], Field(max_length=1 << 16)]


class Message(BaseModel):
    """What travels: JSON, bytes in base64, every field bounded, none that is not known."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64", allow_inf_nan=False
    )

    def write(self) -> bytes:
        """As it travels."""
        return self.model_dump_json().encode()

    @classmethod
    def read(cls, raw: bytes | str) -> Self:
        """As it came.

        Raises:
            SecureAggregationError: it is no such message, or a field is out of its bounds.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:40] for part in first["loc"]) or "message"
            raise SecureAggregationError(
                f"{cls.__name__.lower()} of secure aggregation: {where}: {first['msg']}; "
                "expected what this version of fedsrd writes"
            ) from None


class Session(Message):
    """The public parameters of one attempt.

    Attributes:
        federation: the run, by the name that tells it from others.
        round: the round, 0 or more.
        nonce: 32 hex digits, fresh at every attempt.
        clients: who is asked, each once; 2 to 65,536; kept sorted.
        threshold: clients that must stay to the end; more than half of them. Up to 31 clients, fewer than the threshold
            who collude with a server that keeps to the protocol learn no more than the sum; with a server that
            deviates (clients sign), fewer than 2 threshold - clients. From 32 on: `graph`.
        layout: of the vector that is summed.
        about: SHA-256 of what all do with it, in hexadecimal: so that a server which tells clients different things
            (other weights, other steps, so that all but one of them send nothing) has no session with all of them.
    """

    federation: Name
    round: Annotated[int, Field(ge=0, le=1 << 31)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
    clients: Annotated[tuple[Name, ...], Field(min_length=2, max_length=1 << 16)]
    threshold: Annotated[int, Field(ge=2, le=1 << 16)]
    layout: Layout
    about: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?\z")] = ""

    @field_validator("clients")
    @classmethod
    def _once(cls, clients: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(clients)) < len(clients):
            raise ValueError("a client is named twice")
        return tuple(sorted(clients))

    @model_validator(mode="after")
    def _majority(self) -> Self:
        if not len(self.clients) < 2 * self.threshold <= 2 * len(self.clients):
            raise ValueError(
                f"threshold {self.threshold} of {len(self.clients)} clients: expected more than half, and at most all"
            )
        return self

    def digest(self) -> bytes:
        """SHA-256 of all of it, 32 bytes; every signature and every key is bound to it."""
        return digest(
            "session",
            json.dumps(
                [
                    self.federation,
                    self.round,
                    self.nonce,
                    self.clients,
                    self.threshold,
                    self.layout.bits,
                    self.layout.count,
                    self.about,
                ]
            ),
        )


def statement(purpose: str, *parts: bytes | str) -> bytes:
    """An unambiguous string of bytes for a hash, a signature or a key: each part with its length before it."""
    raw = [f"fedsrd-secure-1 {purpose}".encode(), *(part.encode() if isinstance(part, str) else part for part in parts)]
    return b"".join(len(part).to_bytes(8, "little") + part for part in raw)


def digest(purpose: str, *parts: bytes | str) -> bytes:
    """SHA-256 of the statement, 32 bytes."""
    return hashlib.sha256(statement(purpose, *parts)).digest()

"""Who is told what happens between the server and its clients."""

from logging import getLogger
from typing import Any, Protocol

LOGGER = getLogger("flwr")


class Watch(Protocol):
    """Who is told what happens between the server and its clients."""

    def event(self, kind: str, **fields: Any) -> None:
        """joined, refused, asked, answered, failed, silent, settled; with client, round, bytes, seconds, reason."""


class LogWatch:
    """An engine's watch that tells Flower's log."""

    def event(self, kind: str, **fields: Any) -> None:
        """One line of it."""
        told = ", ".join(f"{key} {value}" for key, value in fields.items() if value is not None)
        (LOGGER.warning if kind == "refused" else LOGGER.info)("\t%s: %s", kind, told)

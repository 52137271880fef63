"""Structured logs: one JSON object a line, appended; for people with `jq`, and for whatever watches a service."""

import json
import os
import time
from pathlib import Path
from typing import Any

from fedsrd.errors import FederationError
from fedsrd.files import append_line


class Log:
    """A log file. Every line has `time` (Unix seconds) and `event`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line.

        Raises:
            FederationError: the file cannot be written, or is a link, which is not followed.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, line)
        except OSError as error:
            raise FederationError(f"{self.path.name} cannot be written: {error.strerror or error}") from None


def resident_mib() -> float | None:
    """Memory that this process holds now, in MiB; None where the system does not say (it is Linux that does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)

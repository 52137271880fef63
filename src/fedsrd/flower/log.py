"""Structured logs: one JSON object a line, appended; for people with `jq`, and for whatever watches a service."""

import json
import time
from pathlib import Path
from typing import Any


class Log:
    """A log file. Every line has `time` (Unix seconds) and `event`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

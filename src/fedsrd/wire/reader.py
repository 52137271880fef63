"""A cursor over a payload's bytes that cannot run past their end."""

from typing import Any

import numpy as np

from fedsrd.errors import PayloadError


class Reader:
    """Reads little-endian arrays one after the other.

    Attributes:
        trace: (section, bytes, entropy in bits) of what was read, for `fedsrd inspect`; None to keep none.
    """

    def __init__(self, view: memoryview, offset: int = 0, *, tracing: bool = False) -> None:
        self._view = view
        self._at = 0
        self._offset = offset
        self.trace: list[tuple[str, int, float]] | None = [] if tracing else None

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes.

        Raises:
            PayloadError: fewer are left; the message says of what and where.
        """
        self.need(size, what)
        taken = self._view[self._at : self._at + size]
        self._at += size
        return taken

    def need(self, size: int, what: str) -> None:
        """Raises PayloadError unless `size` more bytes are there: before anything of that size is made."""
        left = len(self._view) - self._at
        if size > left:
            place = self._offset + self._at
            raise PayloadError(f"{what} at byte {place}: needs {size} bytes, {left} are left: truncated")

    def array(self, dtype: str, count: int, what: str) -> "np.ndarray[Any, Any]":
        """The next `count` numbers of a little-endian dtype, as a view of the payload. Raises PayloadError."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count, what), dtype=dtype)

    def number(self, dtype: str, what: str) -> int:
        """The next unsigned integer. Raises PayloadError."""
        return int(self.array(dtype, 1, what)[0])

    def end(self) -> None:
        """Raises PayloadError unless every byte was read."""
        left = len(self._view) - self._at
        if left:
            raise PayloadError(f"{left} bytes too many after the last value")

    def note(self, section: str, size: int, bits: float) -> None:
        """Remembers a section's size and entropy, if somebody wants to know."""
        if self.trace is not None:
            self.trace.append((section, size, bits))

"""Whether the hub answers, asked once and shortly, before anybody waits for it.

huggingface_hub tries a file's metadata six times and sleeps 23 seconds in between where there is no network; where a
firewall drops packets it waits a minute each time. So the hub is asked for a connection first. Without one, libraries
are told to look into their caches alone, and the user is told at once; with one, they do as they always do, downloads
and slow links included.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fedsrd.text import foreign, printable

TIMEOUT = "HF_HUB_ETAG_TIMEOUT"
"""huggingface_hub's own variable: seconds to wait for it; where it is set, we wait as long for a connection."""
CONNECT = 3.0
"""Seconds to wait for a connection. One over a geostationary satellite is there within two."""
SILENT = 1.0
"""Seconds after which the user is told what is waited for."""
FRESH = 60.0
"""Seconds for which an answer, or none, is remembered."""
_FAILED = ("ConnectError", "ConnectTimeout", "ProxyError")
"""What clients of HTTP raise where there is no connection. By name: huggingface_hub has changed its client before."""


@dataclass
class _Known:
    """What was found out last: when, and why there was no connection, "" where there was one."""

    when: float = -FRESH
    reason: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


_known = _Known()


def host() -> str:
    """The hub's name, huggingface.co or that of $HF_ENDPOINT."""
    from huggingface_hub import constants

    return foreign(urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT, 100)


def is_offline() -> bool:
    """Whether the user wants nothing to be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def out_of_reach(what: str) -> str:
    """Why the hub cannot be asked for `what`; "" where it can, or where the user wants it not to be asked at all.

    Takes `CONNECT` seconds at most, or $HF_HUB_ETAG_TIMEOUT, and says on standard error what it waits for where that is
    long. Proxies and certificates are those of huggingface_hub's own client.
    """
    if is_offline():
        return ""
    with _known.lock:
        if time.monotonic() - _known.when >= FRESH:
            with telling(what, SILENT):
                _known.reason = _probe()
            _known.when = time.monotonic()
        return _known.reason


def forget() -> None:
    """The next `out_of_reach` asks again."""
    _known.when = -FRESH


@contextlib.contextmanager
def telling(what: str, after: float) -> Iterator[None]:
    """Says on standard error that the hub is asked, where the inside takes longer than `after` seconds."""

    def say() -> None:
        # A line of its own, whatever else is shown: progress on a terminal moves below what goes to standard error.
        sys.stderr.write(printable(f"Asking {host()} for {foreign(what)}\n"))
        sys.stderr.flush()

    timer = threading.Timer(after, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _probe() -> str:
    from huggingface_hub import constants, get_session

    given = os.environ.get(TIMEOUT, "")
    seconds = float(given) if given.isascii() and given.isdecimal() and int(given) else CONNECT
    connected, done = threading.Event(), threading.Event()
    reasons: list[str] = []

    def watch(event: str, _: Any) -> None:
        if event == "connection.connect_tcp.complete":
            connected.set()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds, follow_redirects=False, extensions={"trace": watch})
        except Exception as error:  # whatever else goes wrong, whoever loads something says it better
            # Who has a connection and hears nothing may be slow: no reason to give up. A refused certificate is one.
            if type(error).__name__ in _FAILED and not (connected.is_set() and "Timeout" in type(error).__name__):
                reasons.append(foreign(str(error) or type(error).__name__, 160))
        finally:
            done.set()

    # In a thread, since looking up a name has no time limit of its own.
    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    if done.is_set() or connected.is_set():
        return reasons[0] if reasons else ""
    return f"no connection within {seconds:g} s"

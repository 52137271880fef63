"""What do sums that nobody can take apart cost, beside the plain method?"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import Result, alternate
from shapes import LLAMA_3B

from fedsrd.privacy.packed import Layout, add_, bits_for, from_bytes, pack, subtract_, to_bytes, unpack
from fedsrd.privacy.secure import Client, Confirmation, Inbox, Keys, Server, Session, Shares

MIB = 1 << 20
PARAMETERS = LLAMA_3B.elements
SCHEDULED = -(-PARAMETERS // 3)
"""Elements of one round: a third of them all, ternary."""


def run_packed(quick: bool) -> Result:
    """Nanoseconds a value to pack, unpack, add and subtract."""
    count = 1_000_000 if quick else 32_000_000
    result = Result(
        f"Packed integers, {count // 10**6} million, nanoseconds a value",
        ["bits", "MiB", "pack", "unpack", "add", "subtract", "to bytes", "from bytes"],
    )
    random = np.random.default_rng(0)
    for bits in (4, 6, 8):
        layout = Layout(bits, count)
        values = random.integers(-1, 2, count, np.int8)
        words, others = pack(values, layout), pack(values, layout)
        raw = to_bytes(words)
        found = alternate(
            {
                "pack": lambda: pack(values, layout),  # noqa: B023
                "unpack": lambda: unpack(words, layout),  # noqa: B023
                "add": lambda: add_(words, others, layout),  # noqa: B023
                "subtract": lambda: subtract_(words, others, layout),  # noqa: B023
                "to bytes": lambda: to_bytes(words),  # noqa: B023
                "from bytes": lambda: from_bytes(raw, layout),  # noqa: B023
            },
            5,
        )
        result.rows.append([bits, layout.bytes / MIB, *(seconds / count * 1e9 for seconds in found.values())])
    return result


@dataclass
class Site:
    """A client, its long-lived key, and what one of its sessions has cost."""

    name: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    seconds: float = 0.0
    up: int = 0
    down: int = 0

    def sign(self, said: bytes) -> str:
        """As the site's identity would."""
        return self.key.sign(said).hex()


class Watch:
    """Adds up the seconds of calls: of the processor, since all of it is one thread's computation."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, call: Callable[[], Any]) -> Any:
        """The call's result."""
        began = time.process_time()
        result = call()
        self.seconds += time.process_time() - began
        return result


def run(quick: bool) -> Result:
    """Bytes and seconds of whole sessions at Llama-3.2-3B, rank 64, a third of the elements, ternary."""
    count = SCHEDULED // 28 if quick else SCHEDULED
    result = Result(
        f"Secure aggregation, {count:,} ternary integers (a third of Llama-3.2-3B's at rank 64), signed",
        [
            "clients",
            "neighbours",
            "bits a parameter",
            "MiB up",
            "kB more up",
            "kB more down",
            "client s",
            "server s: none dropped",
            "one",
            "a quarter",
        ],
        notes=[
            "Threshold: three quarters. Client: packing and all phases; the median of all. Server: all phases, from "
            "bytes to integers. Seconds of the processor, one thread.",
        ],
    )
    for clients in (4, 16) if quick else (4, 16, 64):
        result.rows.append(_session(clients, count, result))
    return result


def _session(clients: int, count: int, result: Result) -> list[Any]:
    layout = Layout(bits_for(clients, 1), count)
    sites = {site.name: site for site in (Site(f"hospital-{i:02}") for i in range(clients))}
    public = {name: site.key.public_key() for name, site in sites.items()}
    session = Session(
        federation="f" * 16,
        round=1,
        nonce="0" * 32,
        clients=tuple(sites),
        threshold=clients * 3 // 4,
        layout=layout,
    )

    def verify(name: str, signature: str, said: bytes) -> bool:
        try:
            public[name].verify(bytes.fromhex(signature), said)
        except InvalidSignature:
            return False
        return True

    watches = {name: Watch() for name in sites}
    serving, adding = Watch(), Watch()
    server = Server(session, verify)
    parties: dict[str, Client] = {}
    keys: dict[str, Keys] = {}
    for name, site in sites.items():
        parties[name], keys[name] = watches[name](lambda: Client.start(session, site.name, site.sign))  # noqa: B023
        site.up += len(keys[name].write())
    roster = serving(lambda: server.keys(keys))
    shares: dict[str, Shares] = {}
    for name, site in sites.items():
        site.down += sum(len(one.write()) for one in roster)
        shares[name] = watches[name](lambda: parties[site.name].share(roster, verify))  # noqa: B023
        site.up += len(shares[name].write())
    inboxes: dict[str, Inbox] = serving(lambda: server.shares(shares))
    values = np.random.default_rng(0).integers(-1, 2, count, np.int8)
    seen: list[float] = []
    stops = {clients * 3 // 4: "a quarter", clients - 1: "one", clients: "none"}
    for number, (name, site) in enumerate(sites.items(), 1):
        site.down += len(inboxes[name].write())
        words = watches[name](lambda: pack(values, layout))
        watches[name](lambda: parties[site.name].mask(inboxes[site.name], words))  # noqa: B023
        raw = watches[name](lambda: to_bytes(words))  # noqa: B023
        assert adding(lambda: server.masked(site.name, raw))  # noqa: B023
        if number in stops:
            before = serving.seconds
            ended = _ended(server, parties, sites, watches if number == clients else None, verify, serving)
            assert np.array_equal(ended, values * number)
            seen.append(adding.seconds + serving.seconds)
            serving.seconds = before
    client = sorted(watch.seconds for watch in watches.values())[clients // 2]
    result.notes.append(
        f"{clients} clients: {adding.seconds / clients * 1e3:.0f} ms to add one input, "
        f"{seen[-1] - adding.seconds:.2f} s for the rest with none dropped."
    )
    near = len(next(iter(shares.values())).sealed)
    any_site = next(iter(sites.values()))
    costs = [layout.bytes / MIB, any_site.up / 1e3, any_site.down / 1e3]
    # One of four is a quarter: there the two stops are one.
    return [clients, near, 8 * layout.bytes / (3 * count), *costs, client, seen[-1], seen[-2], seen[0]]


def _ended(
    server: Server,
    parties: dict[str, Client],
    sites: dict[str, Site],
    watches: dict[str, Watch] | None,
    verify: Callable[[str, str, bytes], bool],
    serving: Watch,
) -> Any:
    """The sum of those that masked so far, on copies of all parties, so that the session itself goes on."""
    server = Server.from_bytes(server.to_bytes(), verify)
    survivors = serving(server.survivors)
    copies = {name: Client.from_bytes(parties[name].to_bytes()) for name in survivors}
    watches = watches or {name: Watch() for name in survivors}
    said: dict[str, Confirmation] = {}
    for name in survivors:
        said[name] = watches[name](lambda: copies[name].confirm(survivors, sites[name].sign))  # noqa: B023
    confirmations = serving(lambda: server.confirmations(said))
    answers = {
        name: watches[name](lambda: copies[name].reveal(survivors, confirmations, verify))  # noqa: B023
        for name in survivors
    }
    if len(survivors) == len(sites):
        for name, site in sites.items():
            site.up += len(said[name].write()) + len(answers[name].write())
            site.down += sum(len(one.write()) for one in confirmations) + sum(len(one) + 4 for one in survivors)
    serving(lambda: server.reveal(answers))
    return serving(lambda: unpack(server.total(), server.session.layout))

"""What a dishonest client, a dishonest server, a bad disk and a bad moment do to a federation, for tests.

Replies are those of an honest client, changed on their way to the server: `LIES` has one function a lie, which gets the
header as a dict, the payload, and what the liar may know (`Knows`), and gives header and payload.
"""

import json
from dataclasses import dataclass, field

import torch

from fedsrd import wire
from fedsrd.core.tensors import SparseTensor

TEXTS = (
    "[/x]",
    "[bold red]\x1b[2J\x1b]8;;http://evil\x07",
    "</script><script>window.pwned=1</script>",
    "{instruction.__class__}",
    "a\0b\r\n" * 40,
    "\u202egnp.exe",
    "x" * 100_000,
)
"""What people who mean harm call things, and give as reasons."""

NUMBERS = (0, -1, 1, 10**9, 10**18, 2**64, 10**400, 1e308, -1e308, float("nan"), float("inf"), None, "7", [1], {"a": 1})
"""What they say where a number is expected."""

FIELDS = ("examples", "loss", "held", "round", "seconds.train", "seconds.encode", "lost", "protocol")


@dataclass
class Knows:
    """What a liar may use: the table of its updates, and payloads that it saw.

    Attributes:
        table: of an update.
        others: the payloads of the round so far, by client.
        own: its own payloads of earlier rounds.
        broadcast: the last payload that the server sent it.
    """

    table: object
    others: dict = field(default_factory=dict)
    own: list = field(default_factory=list)
    broadcast: bytes = b""


def scaled(payload, table, factor):
    """The same update, every value times `factor`, as far as float32 goes."""
    header, delta = wire.decode_delta(payload, table)
    largest = torch.finfo(torch.float32).max
    made = {
        name: SparseTensor(
            sparse.shape,
            sparse.positions,
            (sparse.values.double() * factor).clamp(-largest, largest).float(),
            sparse.draw,
        )
        for name, sparse in delta.items()
    }
    return wire.encode_delta(made, table, header.kind, header.round, header.version, wire.WireOptions())


def one_element(payload, table, value):
    """An update that changes one element alone, by `value`."""
    header, _ = wire.decode_delta(payload, table)
    spec = table.specs[0]
    made = {spec.name: SparseTensor(spec.shape, torch.tensor([0]), torch.tensor([value]))}
    return wire.encode_delta(made, table, header.kind, header.round, header.version, wire.WireOptions())


def with_field(header, where, value):
    """The header with one field, named with dots, replaced."""
    found = json.loads(json.dumps(header))
    *above, last = where.split(".")
    node = found
    for part in above:
        node = node.setdefault(part, {})
    node[last] = value
    return found


LIES = {
    **{
        f"times {factor:g}": lambda header, payload, knows, factor=factor: (
            header,
            scaled(payload, knows.table, factor),
        )
        for factor in (-1.0, 0.0, 5.0, 1e3, 1e10, 1e30, 3e38, -3e38)
    },
    "one element": lambda header, payload, knows: (header, one_element(payload, knows.table, 3e38)),
    "a flipped bit": lambda header, payload, knows: (header, payload[:-1] + bytes([payload[-1] ^ 1])),
    "cut short": lambda header, payload, knows: (header, payload[: len(payload) // 2]),
    "nothing": lambda header, payload, knows: (header, b""),
    "no payload of ours": lambda header, payload, knows: (header, b"\x80\x05cos\nsystem\n." * 5),
    "somebody else's": lambda header, payload, knows: (header, next(iter(knows.others.values()), payload)),
    "its own of before": lambda header, payload, knows: (header, knows.own[0] if knows.own else payload),
    "the server's": lambda header, payload, knows: (header, knows.broadcast or payload),
    "another name": lambda header, payload, knows: (with_field(header, "name", "c0"), payload),
    "a name that is none": lambda header, payload, knows: (with_field(header, "name", "../../[/x]"), payload),
    "more than asked": lambda header, payload, knows: ({**header, "admin": True}, payload),
    "less than asked": lambda header, payload, knows: ({"kind": header["kind"]}, payload),
}


def failing(text):
    """The lie of a client that fails, with this reason."""
    return lambda header, payload, knows: ({**header, "failure": text}, b"")


def numbered(where, value):
    """The lie of a client that says something else in one field."""
    return lambda header, payload, knows: (with_field(header, where, value), payload)

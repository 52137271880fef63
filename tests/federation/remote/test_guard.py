"""What a server's numbers may cost a client: honest broadcasts pass, others are refused before memory is taken.

The known abuses are programs of tests/attacks (server_*.py).
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import TABLE, Federation, build, config_of

from fedsrd import wire
from fedsrd.errors import PayloadError
from fedsrd.federation import snapshot
from fedsrd.federation.ledger import Ledger
from fedsrd.federation.messages import MOST_BROADCASTS, Broadcast, Sync
from fedsrd.federation.remote import header
from fedsrd.federation.remote.guard import OWN, PER_BYTE, GuardedClient
from fedsrd.federation.remote.header import Envelope, Job
from fedsrd.federation.remote.respond import respond

OWN_ELEMENTS = TABLE.elements + snapshot.base_table(TABLE).elements


@pytest.mark.parametrize("name", ["flora", "fedex-lora"])
@pytest.mark.parametrize("values", ["float32", "ternary"])
def test_an_honest_broadcast_of_many_updates_is_taken(name, values):
    """Of so many that the client's own size alone would not allow it."""
    many = range(1, 60)
    options = wire.WireOptions(values=values)
    federation = Federation(build(name), keys=many, coding=options)
    guarded = GuardedClient("c0", federation.config, None)
    guarded.start(federation.server.start())
    closed = federation.round()
    assert federation.config.downlink_table(len(many)).elements > OWN * OWN_ELEMENTS
    guarded.sync(Sync(broadcasts=(closed.broadcast,)))
    assert guarded.digest == federation.server.digest


@given(st.integers(1, 2**32 - 1), st.binary(max_size=300))
def test_no_more_elements_than_what_is_held_and_what_came(clients, payload):
    config = config_of(build("flora"))
    guarded = GuardedClient("c0", config, None)
    guarded.restore(config.start())
    refused = clients * TABLE.elements > OWN * OWN_ELEMENTS + PER_BYTE * len(payload)
    with pytest.raises(PayloadError, match="expected at most" if refused else "at least 56|no FedSRD|starts with"):
        guarded.sync(Sync(broadcasts=(Broadcast(1, 1, payload, "0" * 64, clients),)))


def test_who_has_missed_more_rounds_than_a_message_takes_gets_the_whole_state():
    ledger = Ledger()
    for version in range(1, MOST_BROADCASTS + 3):
        ledger.append(Broadcast(version, version, b"x", "0" * 64, 1), [])
    assert len(ledger.since(2, MOST_BROADCASTS + 2)) == MOST_BROADCASTS
    assert ledger.since(1, MOST_BROADCASTS + 2) is None
    sync = Sync(broadcasts=ledger.since(2, MOST_BROADCASTS + 2))
    found, payload = header.header_of_sync(sync)
    text = found.model_dump_json()
    assert len(text) < header.LIMIT
    assert header.sync_of_header(header.SyncHeader.model_validate_json(text), payload) == sync


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([["p", [-2, -3], "plain"]], "a shape that no tensor has"),
        ([["p", [0, 1 << 70], "plain"]], "a shape that no tensor has"),
        ([["p", [1] * 17, "plain"]], "a shape that no tensor has"),
        ([["p", [2, 2], "lora_B"]], "is called lora_B, which its name and shape do not say"),
        ([["p", [2], "plain"], ["p", [3], "plain"]], "two tensors have one name"),
        ([["q.lora_B.weight", [2, 2], "lora_B"]], "its partner has shape None"),
    ],
)
def test_tensors_that_are_none_are_refused(specs, reason):
    job = {"method": {"name": "fedavg"}, "seed": 0, "uplink": {}}
    good = [["q.lora_B.weight", [4, 2], "lora_B"], ["q.lora_A.weight", [2, 5], "lora_A"], ["p", [], "plain"]]
    assert Job.model_validate_json(json.dumps({**job, "tensors": good})).table().elements == 19
    text = json.dumps({**job, "tensors": specs})
    with pytest.raises(PayloadError, match=reason):
        header.unpack(Envelope(text), Job)


class Nothing:
    strict = knows_model = True


@pytest.mark.parametrize("method", [{}, {"name": 3}, {"name": "fedavg", "more": [1]}, {"name": ["x"]}])
def test_a_method_that_is_none_is_refused(method, tmp_path):
    job = {"method": method, "seed": 0, "uplink": {}}
    order = {"kind": "finalize", "federation": "0" * 16, "name": "c0", "reset": False, "job": job, "sync": {}}
    with pytest.raises(PayloadError, match=r"\[method\] table cannot be read"):
        respond(Envelope(json.dumps(order)), {"client": "c0", "state": str(tmp_path)}, Nothing(), 7)

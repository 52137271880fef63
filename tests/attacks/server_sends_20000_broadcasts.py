"""A message of 20,000 broadcasts without a byte each: once quadratic in their number."""

import json

from forge_server import show

from fedsrd.federation.remote.header import Envelope, Finalize, unpack

MESSAGE = r"a Finalize header is wrong at sync.broadcasts: List should have at most 4096 items"


def strike() -> None:
    one = {"round": 1, "version": 1, "digest": "0" * 64, "clients": 1, "size": 0}
    job = {"method": {"name": "fedavg"}, "seed": 0, "uplink": {}}
    order = {"kind": "finalize", "federation": "0" * 16, "name": "victim", "reset": False, "job": job}
    unpack(Envelope(json.dumps({**order, "sync": {"broadcasts": [one] * 20_000}})), Finalize)


if __name__ == "__main__":
    show(__file__, strike, MESSAGE)

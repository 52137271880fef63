"""Fuzzing of what crosses a network between servers and clients: headers in JSON, payloads behind them.

An input is a header, a zero byte, and the payloads. It goes to a client's end of the protocol, which must answer or
raise an error of ours; to every reader of the server's end, which must give a header or raise PayloadError; and what a
client says about itself must have come out checked.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import atheris
import harness

with atheris.instrument_imports(include=["fedsrd.federation", "fedsrd.recipe", "fedsrd.wire"]):
    from toy import TABLE, Federation, ToyTrainer, build

    from fedsrd.errors import FedSRDError, PayloadError
    from fedsrd.federation.messages import Sync
    from fedsrd.federation.remote import header
    from fedsrd.federation.remote.header import Envelope
    from fedsrd.federation.remote.respond import respond

NAME = "0" * 16
READ = (header.HelloReply, header.TrainReply, header.SyncReply)


class Runtime:
    """A client's model and data: none."""

    strict = True
    knows_model = True

    def table(self, job):
        return TABLE

    def trainer(self, job, site):
        return ToyTrainer(1)

    def evaluate(self, client, job, round_number):
        return {}

    def finish(self, client, job, site, replica):
        pass


def one_input(data: bytes) -> None:
    """Both ends read it."""
    text, _, payload = data.partition(b"\0")
    message = Envelope(text.decode("utf-8", "replace"), payload)
    for kind in READ:
        try:
            said, _ = header.unpack(message, kind)
        except PayloadError:
            continue
        if kind is header.TrainReply:
            assert all(math.isfinite(value) for value in said.seconds.told().values())
        assert len(said.model_dump_json()) < header.LIMIT
    state = Path(tempfile.mkdtemp(prefix="fedsrd-fuzz-", dir="/dev/shm"))
    try:
        respond(message, {"client": "c0", "state": str(state)}, Runtime(), 10)
    except FedSRDError:
        pass
    finally:
        shutil.rmtree(state)


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """A field of the header changed, or any byte."""
    text, zero, payload = data.partition(b"\0")
    if seed % 3:
        try:
            changed = json.dumps(harness.mutated(json.loads(text), seed)).encode()
            return (changed + zero + payload)[:size]
        except ValueError:
            pass
    return bytes(atheris.Mutate(data, size))


def seeds() -> Iterable[tuple[str, bytes]]:
    """A message of every kind, and of every way to bring a client forward."""
    for method in ("fedavg", "flora", "scaffold"):
        federation = Federation(build(method))
        for number in range(3):
            job = header.Job(
                method={"name": method}, seed=0, uplink=federation.config.uplink, tensors=list(TABLE.specs)
            )
            server = federation.server
            server.ledger.known.pop("c0")
            syncs = {"steps": server.sync("c0"), "whole": Sync(snapshot=server.snapshot())}
            for way, sync in syncs.items():
                about, payload = header.header_of_sync(sync)
                order = {"federation": NAME, "name": "c0", "reset": False, "job": job, "sync": about}
                task = header.Train(**order, round=number + 1, version=number, digest=server.digest)
                for title, one in (("train", task), ("finalize", header.Finalize(**order))):
                    packed = header.pack(one, payload)
                    yield f"{method}-{title}-{way}-{number}", packed.text.encode() + b"\0" + packed.payload
            federation.delivered("c0")
            federation.round()
            update = federation.answers[0]
            reply = header.TrainReply(name="c0", round=number + 1, held=number, examples=8, loss=1.0)
            yield f"{method}-reply-{number}", reply.model_dump_json().encode() + b"\0" + update.payload


if __name__ == "__main__":
    harness.run("message", one_input, seeds, mutate)

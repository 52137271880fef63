"""How long is the server's whole part of a round: decode, step, encode, apply, digest?"""

import time

from harness import Result
from shapes import LLAMA_3B, dense, part, state, uplink

from fedsrd.core.tensors import GlobalState
from fedsrd.federation.messages import Update
from fedsrd.federation.server import Server
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import get
from fedsrd.wire import Kind, WireOptions, encode_delta

MIB = 1 << 20
CLIENTS = 4


def run(quick: bool) -> Result:
    """`Server.close_round` on four real payloads, by method and number type, least of two."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    start = state(table)
    result = Result(
        "The server's whole part of a round, 4 clients, Llama-3.2-3B at rank 64" + (", one layer" if quick else ""),
        ["method", "numbers", "MiB up", "MiB down", "decode s", "step s", "broadcast s", "all s", "x FedAvg"],
        notes=["Broadcast: encode, read back as clients will, apply, and the digest of the new state. An odd round."],
    )
    reference = 0.0
    for name, values, exponents in (
        ("fedavg", "float32", "raw"),
        ("fedavg", "float32", "auto"),
        ("fedsrd-e", "float32", "auto"),
        ("fedsrd", "float32", "auto"),
        ("fedsrd", "int4", "auto"),
    ):
        method, options = get(name)(get(name).Options()), WireOptions(values=values, exponents=exponents)
        answers = []
        for client in range(CLIENTS):
            delta = dense(table, client) if name == "fedavg" else uplink(table, seed=client)
            payload = encode_delta(delta, table, Kind.UPLINK, 1, 0, options, client)
            answers.append(Update(str(client), 1, 1, payload, 0.0, {}))
            del delta
        server = Server(FederationConfig(method, table, 0, options, options))
        rows = []
        for _ in range(2):
            # A state of its own, so that no digest is known beforehand.
            server.restore(GlobalState(start.tensors))
            began = time.perf_counter()
            closed = server.close_round(answers)
            seconds, phases = time.perf_counter() - began, closed.seconds
            up, down = len(answers[0].payload) / MIB, len(closed.broadcast.payload) / MIB
            rows.append([seconds, up, down, phases["decode"], phases["server"], phases["broadcast"]])
        seconds, up, down, *phases_found = min(rows)
        reference = reference or seconds
        numbers = f"{values}, raw" if exponents == "raw" else values
        result.rows.append([name, numbers, up, down, *phases_found, seconds, seconds / reference])
    return result

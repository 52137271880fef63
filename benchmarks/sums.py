"""What integers on a common grid cost a client and the server, beside the plain method's payloads."""

import numpy as np
import torch
from harness import Result, alternate, once
from shapes import LLAMA_3B, part

from fedsrd import methods, rng
from fedsrd.core.tensors import SparseTensor
from fedsrd.federation import sums, transition
from fedsrd.federation.sum_codec import SumCodec
from fedsrd.federation.sums import Form, Steps
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import RoundContext
from fedsrd.privacy import packed
from fedsrd.wire import Kind, SumOptions, WireOptions


def run(quick: bool) -> Result:
    """Seconds at a client to make an update's bytes, and at the server to make four clients' bytes one update."""
    table = part(LLAMA_3B, 7) if quick else LLAMA_3B
    kind = methods.get("cyclic")
    method = kind(kind.Options(period=3))
    options = SumOptions(levels=1, threshold=1.6)
    plain = FederationConfig(method, table, 0, WireOptions(values="ternary", threshold=1.6, block=1024))
    context = RoundContext(1, 0)
    elements = method.elements(table, context)
    random = np.random.default_rng(0)
    delta = {}
    for spec in table.specs:
        draw = elements[spec.name]
        assert draw is not None
        positions = draw.positions(spec.name, spec.elements)
        values = torch.from_numpy(random.uniform(-1e-3, 1e-3, len(positions)).astype(np.float32))
        delta[spec.name] = SparseTensor(spec.shape, positions, values, draw)
    steps = Steps.first(table, options, 1e-3)
    form = Form(table, elements, options, 4)
    seconds_form = once(lambda: Form(table, elements, options, 4).layout)

    def in_the_clear() -> bytes:
        codec = transition.Codec(table, plain.uplink, rng.integer(0, "rounding"))
        codec.received(delta)
        return codec.payload(delta, Kind.UPLINK, 1, 0)

    def summed() -> bytes:
        codec = SumCodec(form, steps.terms(form), 1, 1)
        codec.received(delta)
        return codec.payload(delta, Kind.UPLINK, 1, 0)

    payload, integers = in_the_clear(), summed()
    state = plain.start()

    def decoded() -> None:
        for _ in range(4):
            transition.read_update(plain, state, payload)

    def added() -> None:
        total = form.layout.zeros()
        for _ in range(4):
            packed.add_(total, sums.read_words(integers, form, 1, 0), form.layout)
        sums.opened(total, form, steps, 4)

    client = alternate({"plain": in_the_clear, "summed": summed}, 3)
    server = alternate({"plain": decoded, "summed": added}, 3)
    result = Result(
        f"Integer sums, {table.elements / 1e6:.0f} million parameters, cyclic, a third, ternary, four clients",
        ["", "payload, bits a parameter", "client: round and code, s", "server: decode or add up, s"],
        notes=["feedback's bookkeeping, which both have, and masks are not part of it", f"form: {seconds_form:.2f} s"],
    )
    for name, size in (("plain", len(payload)), ("summed", len(integers))):
        result.rows.append([name, 8 * size / table.elements, client[name], server[name]])
    return result

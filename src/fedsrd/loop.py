"""FedSRD's codec for a training loop of your own: PEFT's state dicts in, bytes out; no recipe, no Flower.

State dicts are PEFT's, as `peft.get_peft_model_state_dict` gives them: "....lora_A.weight" (r, in_features) and
"....lora_B.weight" (out_features, r), any float dtype on any device; what comes back is float32 on the CPU. The rounds
are those of `fedsrd run`: the same seed, clients and updates give the same bytes.

A round of two clients, by hand:

>>> import torch
>>> a = torch.arange(12.0).reshape(2, 6) / 10
>>> start = {"q.lora_A.weight": a, "q.lora_B.weight": torch.zeros(4, 2)}
>>> server = Aggregator(start, method="fedsrd-e", download_sparsity=0.0)
>>> payloads = []
>>> for client, change in (("ward-a", 0.1), ("ward-b", 0.3)):
...     trained = {**start, "q.lora_B.weight": torch.full((4, 2), change)}
...     delta = sparsify(start, trained, round=1, client=client, sparsifier="dense")
...     payloads.append(encode(delta, start, round=1, client=client))
>>> broadcast = server.close(payloads)
>>> torch.allclose(server.state["q.lora_B.weight"], torch.full((4, 2), 0.2), atol=1e-5)
True
>>> mine = apply(start, broadcast)
>>> all(torch.equal(mine[name], server.state[name]) for name in mine)
True
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsrd import methods, wire
from fedsrd import recipe as recipes
from fedsrd.core.tensors import Delta, GlobalState, Tensors, TensorTable
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import screening, transition
from fedsrd.federation.setup import optimizer_of
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import Contribution, Method, MethodState, capabilities
from fedsrd.training.models import adapter_tensors, tensors_of_adapter

StateDict = Mapping[str, Tensor]


def sparsify(
    before: StateDict,
    after: StateDict,
    *,
    round: int,
    client: str,
    method: str = "fedsrd",
    seed: int = 0,
    **options: Any,
) -> Delta:
    """What a client sends: the elements of its change that a method keeps (arXiv 2510.04601, section 4.1).

    Args:
        before: the state that local training started from.
        after: the state after it.
        round: from 1; with `client` and `seed` it decides where chance does.
        client: its name, each client's own.
        method: any method's name that keeps nothing at its clients.
        seed: the federation's.
        options: of the method, such as alpha=0.85.

    Returns:
        Sparse tensors by name.

    Raises:
        ValueError: the states differ in names or shapes, or hold NaN or infinity.
        RecipeError: there is no such method or option, or the method needs more than state dicts.
    """
    start, trained = _tensors(before), _tensors(after)
    config = _config(method, options, TensorTable.of(start), seed)
    if TensorTable.of(trained) != config.table:
        raise ValueError("before and after are states of different adapters: their names or shapes differ")
    for name, tensors in (("before", start), ("after", trained)):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError(f"{name} holds NaN or infinity; there is nothing to send")
    state = GlobalState(start, {}, round - 1)
    context, _ = transition.client_context(config, round, client, None, {})
    plan = config.method.local_plan(state, context)
    return transition.update(config, plan, trained, context)[0]


def encode(delta: Delta, state: StateDict, *, round: int, client: str, values: str = "float32", seed: int = 0) -> bytes:
    """A delta as an uplink payload (docs/wire-format.md).

    Args:
        delta: of `sparsify`.
        state: any state of this adapter; only its names and shapes count.
        round: the round that it is for, from 1.
        client: the client's name: the narrow number types round at random, each client on a stream of its own.
        values: number type of what travels: float32, bfloat16, float16, int8, int4, int3, int2 or ternary.
        seed: the federation's.

    Raises:
        ValueError: a value does not fit the number type.
    """
    table = TensorTable.of(_tensors(state))
    config = FederationConfig(_method("fedavg", {}), table, seed, wire.WireOptions(values=values))  # type: ignore[arg-type]
    _, codec = transition.client_context(config, round, client, None, {})
    return codec.payload(delta, wire.Kind.UPLINK, round, round - 1)


def decode(payload: bytes, state: StateDict) -> Delta:
    """A payload's delta: sparse tensors by name.

    Raises:
        PayloadError: it is damaged, or for another adapter. Nothing large is allocated before that is known.
    """
    return wire.decode_delta(payload, TensorTable.of(_tensors(state)))[1]


def apply(
    state: StateDict, broadcast: bytes, *, method: str = "fedsrd", seed: int = 0, **options: Any
) -> dict[str, Tensor]:
    """The next state: what a client makes of a broadcast of `Aggregator.close`, equal to the server's bit for bit.

    Raises:
        PayloadError: it is damaged, no broadcast, or for another adapter.
        RecipeError: as `sparsify`.
    """
    tensors = _tensors(state)
    config = _config(method, options, TensorTable.of(tensors), seed)
    header = wire.read_header(broadcast)
    if header.kind is not wire.Kind.DOWNLINK:
        raise PayloadError(f"a {header.kind.name.lower()} payload: expected a broadcast of an Aggregator")
    # A state dict does not say its version; the caller applies every broadcast once, in order.
    return _named(transition.advance(config, GlobalState(tensors, {}, header.version), broadcast, 1).tensors, state)


class Aggregator:
    """The server's part, without data, model or network: payloads in, a broadcast out.

    Args:
        state: the start that all clients have. B is zero in it, as PEFT makes it.
        method: its name; methods that change the base model, or have a model of each client's own, need `fedsrd run`.
        values: number type of the broadcast.
        seed: of the federation.
        server_optimizer: as a recipe's [server_optimizer] table, such as {"name": "sgd", "learning_rate": 0.7,
            "momentum": 0.9, "nesterov": True}; None for the method's own, or none.
        options: of the method.

    Attributes:
        round: how many rounds are closed.

    Raises:
        RecipeError: there is no such method or option, or the method needs more than state dicts.
    """

    def __init__(
        self,
        state: StateDict,
        *,
        method: str = "fedsrd",
        values: str = "float32",
        seed: int = 0,
        server_optimizer: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._like = dict(state)
        tensors = _tensors(state)
        self._config = _config(method, options, TensorTable.of(tensors), seed, values, server_optimizer)
        self._state = GlobalState(tensors)
        self._memory: MethodState = {}

    @property
    def round(self) -> int:
        """How many rounds are closed."""
        return self._state.version

    @property
    def state(self) -> dict[str, Tensor]:
        """The global state, under the names of the one that it started from."""
        return _named(self._state.tensors, self._like)

    def model(self) -> dict[str, Tensor]:
        """The adapter to use and to evaluate: the state, but for methods whose model only the server knows (FLASC)."""
        return _named(self._config.method.model(self._state, self._memory), self._like)

    def close(self, payloads: Sequence[bytes], weights: Sequence[float] | None = None) -> bytes:
        """Closes a round: aggregates, moves the state, and gives the broadcast for every client (`apply`).

        Args:
            payloads: of `encode`, at least one, all of this round; order them alike for equal bits.
            weights: the clients' shares, such as their numbers of examples; None for equal ones.

        Raises:
            PayloadError: a payload is damaged, of another round or adapter, or not finite. The state stays.
            FederationError: the aggregate, or the next state, is not finite, or cannot be sent; the message names the
                payload without which the round would close. The state stays.
            ValueError: no payload, or weights that are none.
        """
        if not payloads:
            raise ValueError("no payload: a round needs one at least")
        shares = [1.0] * len(payloads) if weights is None else [float(weight) for weight in weights]
        if len(shares) != len(payloads) or not all(share > 0 for share in shares) or not math.isfinite(sum(shares)):
            raise ValueError(f"weights {list(weights or ())}: expected {len(payloads)} positive numbers")
        deltas = []
        for place, payload in enumerate(payloads):
            try:
                deltas.append(transition.read_update(self._config, self._state, payload))
            except PayloadError as error:
                raise PayloadError(f"payload {place}: {error}") from None

        def close(places: Sequence[int]) -> transition.Closed:
            total = sum(shares[place] for place in places)
            chosen = [Contribution(f"client-{place}", deltas[place], shares[place] / total) for place in places]
            return transition.close(self._config, self._state, chosen, self._memory, len(payloads))

        closed, _, out = screening.close_with_most([screening.norm_of_delta(delta) for delta in deltas], close)
        if closed is None or out:
            raise FederationError("; ".join(f"payload {place}: {reason}" for place, reason in sorted(out.items())))
        self._state, self._memory = closed.state, closed.memory
        return closed.payload


def _method(name: str, options: Mapping[str, Any]) -> Method:
    kind = methods.get(name)
    method = kind(recipes.method_options(kind.Options, options))
    capabilities.check(method, capabilities.LIBRARY)
    return method


def _config(
    name: str,
    options: Mapping[str, Any],
    table: TensorTable,
    seed: int,
    values: str = "float32",
    optimizer: Mapping[str, Any] | None = None,
) -> FederationConfig:
    method = _method(name, options)
    downlink = wire.WireOptions(values=values)  # type: ignore[arg-type]
    return FederationConfig(method, table, seed, downlink=downlink, optimizer=optimizer_of(method, optimizer))


def _tensors(state: StateDict) -> dict[str, Tensor]:
    # Copies: PEFT gives the live parameters, which training changes in place.
    return tensors_of_adapter(
        {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}
    )


def _named(tensors: Tensors, like: StateDict) -> dict[str, Tensor]:
    """Tensors under the names, and in the order, of another state dict of the same adapter."""
    found = {_bare(name): tensor for name, tensor in adapter_tensors(tensors).items()}
    return {name: found[_bare(name)].clone() for name in like}


def _bare(name: str) -> str:
    return name.removeprefix("base_model.model.")

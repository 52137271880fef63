"""The library's face: runs, comparisons and their results, and FedSRD's codec for a training loop of your own.

State dicts are PEFT's, as `peft.get_peft_model_state_dict` gives them: "....lora_A.weight" (r, in_features) and
"....lora_B.weight" (out_features, r), any float dtype on any device; what comes back is float32 on the CPU.

A round of two clients, by hand:

>>> import torch
>>> a = torch.arange(12.0).reshape(2, 6) / 10
>>> start = {"q.lora_A.weight": a, "q.lora_B.weight": torch.zeros(4, 2)}
>>> server = Aggregator(start, method="fedsrd-e", download_sparsity=0.0)
>>> payloads = []
>>> for change in (0.1, 0.3):
...     trained = {**start, "q.lora_B.weight": torch.full((4, 2), change)}
...     payloads.append(encode(sparsify(start, trained, uplink="dense"), start, round=1))
>>> broadcast = server.close(payloads)
>>> torch.allclose(server.state["q.lora_B.weight"], torch.full((4, 2), 0.2), atol=1e-5)
True
>>> mine = apply(start, broadcast)
>>> all(torch.equal(mine[name], server.state[name]) for name in mine)
True
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedsrd import methods, rng, wire
from fedsrd import recipe as recipes
from fedsrd.core.factors import Delta, LoraPair, ShapeTable, slots
from fedsrd.errors import PayloadError
from fedsrd.federation.setup import method_of
from fedsrd.methods import ClientStep, Method, ServerStep
from fedsrd.methods.method import Step
from fedsrd.recipe import Recipe
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord, Summary
from fedsrd.runs.results import Results
from fedsrd.training.models import adapter_tensors, factors_of_adapter

if TYPE_CHECKING:
    import pandas
    import pyarrow

StateDict = Mapping[str, Tensor]


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, or the embedded default, with `key=value` overrides on top.

    Raises:
        RecipeError: what is wrong and what to do.

    >>> load_recipe(overrides=["rounds=3"]).rounds
    3
    """
    return recipes.load(None if path is None else Path(path), overrides)


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = False, keep_payloads: bool = False, observer: Any = None
) -> "Run":
    """Runs a federation in this process, or continues one.

    Args:
        recipe: what to run (`load_recipe`).
        out: the run's folder; new or empty, unless `resume`.
        resume: continue the run in `out` after its last complete round.
        keep_payloads: keep every payload under OUT/payloads.
        observer: told how it goes (`fedsrd.federation.session.Observer`); None for silence.

    Raises:
        FedSRDError: what is wrong and what to do.
    """
    from fedsrd.federation import local, setup

    watch = observer or _Silent()
    prepared = setup.prepare(recipe, RunFolder(Path(out)), resume=resume, observer=watch)
    local.run(prepared, watch, keep_payloads=keep_payloads)
    return Run(out)


def compare_methods(
    recipe: str | Path | None,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    observer: Any = None,
) -> Results:
    """Runs many methods on equal terms; gives what results.json holds. Arguments as those of `fedsrd compare`.

    Raises:
        FedSRDError: what is wrong and what to do.
    """
    from fedsrd.compare import plan
    from fedsrd.compare import run as comparing
    from fedsrd.report import outcome

    comparison = plan.load(
        None if recipe is None else Path(recipe),
        chosen=None if methods is None else list(methods),
        seeds=None if seeds is None else list(seeds),
        rates=None if learning_rates is None else list(learning_rates),
        overrides=list(overrides),
    )
    comparing.run(comparison, Path(out), observer or _Silent(), resume=resume)
    return outcome.write(comparison, Path(out))


class Run:
    """A run's folder, opened to read.

    Args:
        path: the folder that `fedsrd run` wrote.

    Raises:
        RunFolderError: there is no run in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe: Recipe = RunFolder(self.path).stored_recipe()

    @cached_property
    def records(self) -> list[RoundRecord]:
        """The rounds, 0 first; none before the start is complete. Raises RunFolderError where the file is damaged."""
        return RunFolder(self.path).records()

    @cached_property
    def summary(self) -> Summary:
        """What summary.json holds. Raises RunFolderError where the run is not complete."""
        return RunFolder(self.path).summary()

    @property
    def adapters(self) -> list[Path]:
        """Folders of the adapters, for `PeftModel.from_pretrained`: the global one, or each client's own."""
        return RunFolder(self.path).adapters()

    def frame(self) -> "pandas.DataFrame":
        """One row a round, indexed by its number; columns such as "nll/medical", "bytes/up, mean of clients"."""
        import pandas

        from fedsrd.report.tracking import scalars

        rows = [{"round": record.round, **scalars(record, self.recipe)} for record in self.records]
        return pandas.DataFrame(rows).set_index("round")

    def arrow(self) -> "pyarrow.Table":
        """The same as an Arrow table, with "round" as a column."""
        import pyarrow

        return pyarrow.Table.from_pandas(self.frame().reset_index(), preserve_index=False)


def sparsify(
    before: StateDict,
    after: StateDict,
    *,
    method: str = "fedsrd",
    round: int = 1,
    client: str = "client",
    seed: int = 0,
    **options: Any,
) -> Delta:
    """What a client sends: the elements of its change that a method keeps (arXiv 2510.04601, section 4.1).

    Args:
        before: the state that local training started from.
        after: the state after it.
        method: any method's name that keeps nothing at its clients.
        round: from 1; with `client` and `seed` it decides where chance does.
        client: a name, each client's own.
        seed: the federation's.
        options: of the method, such as alpha=0.85.

    Returns:
        Sparse tensors by (module, factor).

    Raises:
        ValueError: the states differ in names or shapes, or hold NaN or infinity.
        RecipeError: there is no such method or option.
    """
    chosen = _method(method, options)
    start, trained = _factors(before), _factors(after)
    if ShapeTable.of(start) != ShapeTable.of(trained):
        raise ValueError("before and after are states of different adapters: their names or shapes differ")
    for name, factors in (("before", start), ("after", trained)):
        if not all(bool(torch.isfinite(tensor).all()) for _, tensor in slots(factors)):
            raise ValueError(f"{name} holds NaN or infinity; there is nothing to send")
    return chosen.client_update(start, trained, ClientStep(round, client, seed))


def encode(delta: Delta, state: StateDict, *, round: int, values: str = "float32", seed: int = 0) -> bytes:
    """A delta as an uplink payload (docs/wire-format.md).

    Args:
        delta: of `sparsify`.
        state: any state of this adapter; only its names and shapes count.
        round: the round that it is for, from 1.
        values: number type of what travels: float32, bfloat16, float16, int8, int4 or ternary.
        seed: of the rounding of the narrow types; each client should have its own.
    """
    return wire.encode_delta(
        delta, _table(state), wire.Kind.UPLINK, round, round - 1, _coding(values), rng.integer(seed, "rounding", round)
    )


def decode(payload: bytes, state: StateDict) -> Delta:
    """A payload's delta: sparse tensors by (module, factor).

    Raises:
        PayloadError: it is damaged, or for another adapter. Nothing large is allocated before that is known.
    """
    return wire.decode_delta(payload, _table(state))[1]


def apply(
    state: StateDict, broadcast: bytes, *, method: str = "fedsrd", seed: int = 0, **options: Any
) -> dict[str, Tensor]:
    """The next state: what a client makes of a broadcast of `Aggregator.close`, equal to the server's bit for bit.

    Raises:
        PayloadError: it is damaged, no broadcast, or for another adapter.
    """
    factors = _factors(state)
    header, delta = wire.decode_delta(broadcast, ShapeTable.of(factors))
    if header.kind is not wire.Kind.DOWNLINK:
        raise PayloadError(f"a {header.kind.name.lower()} payload: expected a broadcast of an Aggregator")
    moved = _method(method, options).apply(factors, delta, Step(header.round, seed))
    return _named(moved, state)


class Aggregator:
    """The server's part, without data, model or network: payloads in, a broadcast out.

    Args:
        state: the start that all clients have. B is zero in it, as PEFT makes it.
        method: its name; methods that change the base model, or have a model of each client's own, need `fedsrd run`.
        values: number type of the broadcast.
        seed: of the federation.
        options: of the method.

    Attributes:
        round: how many rounds are closed.
    """

    def __init__(
        self, state: StateDict, *, method: str = "fedsrd", values: str = "float32", seed: int = 0, **options: Any
    ) -> None:
        self._method = _method(method, options)
        self._like = dict(state)
        self._factors: Mapping[str, LoraPair] = _factors(state)
        self._table = ShapeTable.of(self._factors)
        self._coding = _coding(values)
        self._seed = seed
        self._memory: dict[str, Tensor] = {}
        self.round = 0

    @property
    def state(self) -> dict[str, Tensor]:
        """The global state, under the names of the one that it started from."""
        return _named(self._factors, self._like)

    def close(self, payloads: Sequence[bytes], weights: Sequence[float] | None = None) -> bytes:
        """Closes a round: aggregates, moves the state, and gives the broadcast for every client (`apply`).

        Args:
            payloads: of `encode`, at least one, all of this round; order them alike for equal bits.
            weights: the clients' shares, such as their numbers of examples; None for equal ones.

        Raises:
            PayloadError: a payload is damaged, of another round or adapter, or not finite. The state stays.
            ValueError: no payload, or weights that are none.
        """
        if not payloads:
            raise ValueError("no payload: a round needs one at least")
        shares = [1.0] * len(payloads) if weights is None else [float(weight) for weight in weights]
        if len(shares) != len(payloads) or min(shares) <= 0:
            raise ValueError(f"weights {list(weights or ())}: expected {len(payloads)} positive numbers")
        number = self.round + 1
        deltas = []
        for place, payload in enumerate(payloads):
            header, delta = wire.decode_delta(payload, self._table)
            if header.kind is not wire.Kind.UPLINK or header.round != number:
                raise PayloadError(
                    f"payload {place}: a {header.kind.name.lower()} of round {header.round}: expected an uplink of "
                    f"round {number}"
                )
            deltas.append(delta)
        memory = dict(self._memory)
        step = ServerStep(number, self._seed, (), memory)
        moved = self._method.server_update(self._factors, deltas, [share / sum(shares) for share in shares], step)
        seed = rng.integer(self._seed, "broadcast rounding", number)
        broadcast = wire.encode_delta(moved, self._table, wire.Kind.DOWNLINK, number, self.round, self._coding, seed)
        # The state moves by what travels, as the clients' do.
        sent = wire.decode_delta(broadcast, self._table)[1]
        self._factors = self._method.apply(self._factors, sent, Step(number, self._seed))
        self._memory, self.round = memory, number
        return broadcast


class _Silent:
    def _nothing(self, *_: object) -> None:
        pass

    say = warn = activity = round_done = run_started = run_done = run_failed = _nothing


def _method(name: str, options: Mapping[str, Any]) -> Method:
    kind = methods.get(name)
    if kind.changes_base or kind.personal or kind.reference:
        others = {other: methods.get(other) for other in methods.names()}
        fits = [o for o, m in others.items() if not (m.changes_base or m.personal or m.reference)]
        raise ValueError(f"method {name!r} needs more than state dicts: use fedsrd run; here: {', '.join(fits)}")
    recipes.refuse_unknown(options, list(kind.Options.model_fields), "method")
    return method_of({"name": name, **options})


def _factors(state: StateDict) -> dict[str, LoraPair]:
    # Copies: PEFT gives the live parameters, which training changes in place.
    return factors_of_adapter(
        {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}
    )


def _table(state: StateDict) -> ShapeTable:
    return ShapeTable.of(_factors(state))


def _named(factors: Mapping[str, LoraPair], like: StateDict) -> dict[str, Tensor]:
    """Factors under the names, and in the order, of another state dict of the same adapter."""
    found = {_bare(name): tensor for name, tensor in adapter_tensors(factors).items()}
    return {name: found[_bare(name)].clone() for name in like}


def _bare(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _coding(values: str) -> wire.Coding:
    return wire.Coding(values=values)  # type: ignore[arg-type]

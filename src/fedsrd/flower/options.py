"""The arguments of the strategy: FedAvg's, by their own names and with their meaning, and FedSRD's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from fedsrd import methods
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import RecipeError
from fedsrd.explain import explain, refuse_unknown, tables
from fedsrd.federation.setup import optimizer_of
from fedsrd.methods import Method, ServerOptimizer, ServerOptimizerOptions
from fedsrd.recipe import MOST, Name, PublicKey, WireSection, chosen_method
from fedsrd.suggest import did_you_mean
from fedsrd.text import foreign

Aggregate = Callable[[list[RecordDict], str], MetricRecord]

NOT_OURS = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn",
    "evaluate_fn": "start(..., evaluate_fn=...)",
    "initial_parameters": "start(grid, initial_arrays)",
    "on_fit_config_fn": "start(..., train_config=...)",
    "on_evaluate_config_fn": "start(..., evaluate_config=...)",
    "proximal_mu": "FedSRD('fedprox', mu=...)",
    "server_learning_rate": "server_optimizer={'name': 'sgd', 'learning_rate': ...}",
    "server_momentum": "server_optimizer={'name': 'sgd', 'learning_rate': ..., 'momentum': ...}",
    "eta": "server_optimizer={'name': 'adam', 'learning_rate': ...}",
    "eta_l": "nothing: a client's own code sets its learning rate",
    "beta_1": "server_optimizer={'name': 'adam', 'learning_rate': ..., 'beta1': ...}",
    "beta_2": "server_optimizer={'name': 'adam', 'learning_rate': ..., 'beta2': ...}",
    "tau": "server_optimizer={'name': 'adam', 'learning_rate': ..., 'epsilon': ...}",
}
"""Arguments of Flower's other strategies, and of its older FedAvg, with what stands in their place here."""


def _no_bool(value: Any) -> Any:
    # Python counts True as 1.
    if isinstance(value, bool | str):
        raise ValueError("expected a number")
    return value


Number = BeforeValidator(_no_bool)
Count = Annotated[int, Field(ge=1, le=MOST), Number]
CountOrNone = Annotated[int, Field(ge=0, le=MOST), Number]
Text = Annotated[str, Field(min_length=1, max_length=100)]


class StrategyOptions(BaseModel):
    """What a strategy was given, checked; `strategy.FedSRD` says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    fraction_train: Annotated[float, Field(gt=0, le=1), Number] = 1.0
    fraction_evaluate: Annotated[float, Field(ge=0, le=1), Number] = 1.0
    min_train_nodes: Count = 2
    min_evaluate_nodes: CountOrNone = 2
    min_available_nodes: Count = 2
    weighted_by_key: Text = "num-examples"
    arrayrecord_key: Text = "arrays"
    configrecord_key: Text = "config"
    train_metrics_aggr_fn: Aggregate | None = None
    evaluate_metrics_aggr_fn: Aggregate | None = None
    min_updates: Count = 1
    weighting: Literal["uniform", "examples"] = "examples"
    seed: Annotated[int, Field(ge=0, lt=1 << 63), Number] = 0
    wire: WireSection = WireSection()
    norm_bound: Annotated[float, Field(ge=0, le=1e9), Number] = 10.0
    max_share: Annotated[float, Field(gt=0, le=1), Number] = 0.5
    attempts: Count = 3
    keys: dict[Name, PublicKey] = {}
    checkpoint: Path | None = None

    @property
    def needed(self) -> int:
        """Fewest clients that a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes)

    @property
    def needed_to_evaluate(self) -> int:
        """Fewest clients that an evaluation waits for; 0: there is none."""
        return max(self.min_available_nodes, self.min_evaluate_nodes) if self.fraction_evaluate else 0


def checked(given: Mapping[str, Any]) -> StrategyOptions:
    """A strategy's own arguments.

    Raises:
        RecipeError: which has the wrong type or range, or cannot be honoured, and what was expected.
    """
    if given.get("fraction_train") == 0 and not isinstance(given["fraction_train"], bool):
        raise RecipeError(
            "FedSRD: fraction_train = 0: a round without training has no update to send; expected more than 0 (to "
            "evaluate alone, FedAvg(fraction_train=0.0) sends the same arrays)"
        )
    wire = given.get("wire")
    for keys, known, prefix in tables(WireSection, wire, "wire"):
        refuse_unknown(keys, known, prefix)
    if isinstance(wire, WireSection):
        summed: Any = wire.sum
    else:
        summed = wire.get("sum") if isinstance(wire, Mapping) else None
    if summed is not None:
        raise RecipeError(
            "FedSRD: wire.sum: sums of integers need FedSRD's own Flower app (docs/deploy.md); expected wire.uplink "
            "and wire.downlink alone"
        )
    # Of None, the default.
    asked = {name: value for name, value in given.items() if value is not None}
    try:
        found = StrategyOptions.model_validate(asked)
    except ValidationError as error:
        raise RecipeError("\n".join(["FedSRD's arguments are not valid:", *explain(error, "")])) from None
    if found.arrayrecord_key == found.configrecord_key:
        raise RecipeError(
            f"FedSRD: arrayrecord_key and configrecord_key are both {found.arrayrecord_key!r}; expected two names"
        )
    return found


def chosen(method: Any, options: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """The [method] table of a method, of options in one mapping, and of options given by name.

    Raises:
        RecipeError: the method is none of ours, an argument is unknown (the nearest known one is named), or given
            twice.
    """
    if not isinstance(method, str):
        raise RecipeError(
            f"FedSRD({foreign(repr(method), 100)}): the first argument is the method's name; expected "
            f"{', '.join(methods.names())}, and FedAvg's arguments by their names (fraction_train=0.5)"
        )
    if options is not None and not isinstance(options, Mapping):
        raise RecipeError(f"FedSRD: options = {foreign(repr(options), 100)}: expected a dict of the method's options")
    fields = list(methods.get(method).Options.model_fields)
    for name, value in named.items():
        if name in fields:
            if name in (options or {}):
                raise RecipeError(f"FedSRD: {name} is given by name and in options; expected one of them")
            continue
        shown = f"FedSRD({foreign(name, 100)}={foreign(repr(value), 60)}): unknown argument"
        if name in NOT_OURS:
            raise RecipeError(f"{shown}; here it is {NOT_OURS[name]}")
        known = [*fields, *StrategyOptions.model_fields, "options", "server_optimizer"]
        hint = did_you_mean(name, known, "did you mean {!r}?") or (
            f"expected one of {', '.join(known)} (docs/flower-project.md)"
        )
        raise RecipeError(f"{shown}: {hint}")
    return {"name": method, **(options or {}), **named}


def method_of_arguments(table: Mapping[str, Any]) -> Method:
    """The method of a table as `chosen` gives it. Raises RecipeError where an option is wrong."""
    try:
        kind, options = chosen_method(table)
    except RecipeError as error:
        raise RecipeError(f"FedSRD: {str(error).strip()}") from None
    return kind(options)


def optimizer(method: Method, given: Any) -> ServerOptimizer | None:
    """The server's optimizer. Raises RecipeError where it is none, or the method makes no step."""
    if given is not None and not isinstance(given, Mapping | ServerOptimizerOptions):
        raise RecipeError(
            f"FedSRD: server_optimizer = {foreign(repr(given), 60)}: expected a dict such as "
            "{'name': 'adam', 'learning_rate': 0.01}"
        )
    return optimizer_of(method, given)


def check_start(num_rounds: Any, timeout: Any) -> None:
    """Raises RecipeError where these arguments of `start` are not a number of rounds and of seconds."""
    checks: tuple[tuple[str, Any, Any, str], ...] = (
        ("num_rounds", num_rounds, Annotated[int, Field(ge=0, le=MOST), Number], "a whole number of 0 or more"),
        ("timeout", timeout, Annotated[float, Field(gt=0, le=1e8), Number], "seconds, more than 0 and at most 1e8"),
    )
    for name, value, kind, what in checks:
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise RecipeError(f"FedSRD.start: {name} = {foreign(repr(value), 60)}: expected {what}") from None


def settings(config: ConfigRecord | None, what: str) -> dict[str, Any]:
    """A config for the clients' functions. Raises RecipeError where it cannot travel."""
    found = dict(config or {})
    for key, value in found.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bytes) for one in values):
            raise RecipeError(f"{what}: {key!r} holds bytes; expected numbers, texts, or lists of them")
    return found


def identity(
    options: StrategyOptions,
    method: Method,
    optimizer: ServerOptimizer | None,
    train_config: Mapping[str, Any],
    table: TensorTable,
) -> dict[str, Any]:
    """What must be the same when a run goes on, by dotted name: whatever its bytes follow from."""
    names = {"fraction_train", "min_train_nodes", "min_updates", "weighted_by_key", "weighting", "seed", "wire"}
    return flat(
        {
            "method": {"name": method.name, **method.options.model_dump(mode="json")},
            "server_optimizer": {} if optimizer is None else optimizer.options.model_dump(mode="json"),
            **options.model_dump(mode="json", include=names | {"norm_bound", "max_share"}),
            "train_config": train_config,
            "initial_arrays": {spec.name: list(spec.shape) for spec in table.specs},
        }
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found

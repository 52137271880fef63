"""One typed description of a run: TOML in, checked, resolved, TOML out.

Same recipe and seed, same bytes: whatever changes a run's result stands here and nowhere else.
"""

import base64
import binascii
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsrd import shipped, toml
from fedsrd.core.server_optimizer import ServerOptimizerOptions
from fedsrd.errors import RecipeError
from fedsrd.explain import explain, refuse_unknown, tables
from fedsrd.privacy.options import PrivacySection
from fedsrd.text import foreign
from fedsrd.training.options import BaseOptions, TrainingOptions
from fedsrd.wire.options import SumOptions, WireOptions

if TYPE_CHECKING:
    from fedsrd.methods import Method, MethodOptions

MOST = 10**9
"""Of whatever is counted: nothing that anybody means is more, and nothing behind a recipe expects it."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
NotNegative = Annotated[int, Field(ge=0, le=MOST)]
Options = TypeVar("Options", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
KEY_PREFIX = "ed25519:"


def key_bytes(key: str) -> bytes:
    """The 32 bytes of a public key. Raises ValueError where it is none, or not the one way to write it."""
    try:
        raw = base64.b64decode(key.removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or key != KEY_PREFIX + base64.b64encode(raw).decode():
        raise ValueError(f"expected {KEY_PREFIX!r} and 32 bytes in base64, the line that `fedsrd key` prints")
    return raw


def _public_key(key: str) -> str:
    key_bytes(key)
    return key


PublicKey = Annotated[str, Field(max_length=64), AfterValidator(_public_key)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _ModelName(_Section):
    id: Annotated[str, Field(min_length=1)]


# Fields of the last base come first: `id` opens the table.
class ModelSection(BaseOptions, _ModelName):
    """The frozen base model: a Hugging Face id, a folder, or "embedded:smollm2-135m"; and how it is loaded.

    Attributes:
        id: which model.
        license: of the base model, for the adapter's card; a name of the hub such as "apache-2.0" or "llama3.2".
    """

    license: str | None = None


class LoraSection(_Section):
    """The adapter: weight W0 + (alpha / rank) B A on every target."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"


class TrainingSection(TrainingOptions):
    """One client's local fine-tuning in one round (`training.options`)."""


class DataSection(_Section):
    """Where examples are: "embedded:NAME", a JSONL, Parquet or CSV file, a folder, or a Hugging Face data set id."""

    source: Annotated[str, Field(min_length=1)]
    split: str = "train"
    columns: dict[str, str] = {}
    template: str | None = None
    limit: Positive | None = None


class WireSection(_Section):
    """How payloads are coded, each direction on its own; with `sum`, or under secure aggregation, updates are integers
    that are added up, and `uplink` is not used.
    """

    uplink: WireOptions = WireOptions()
    downlink: WireOptions = WireOptions()
    sum: SumOptions | None = None


class ClientSection(_Section):
    """One client and its private data.

    `data` may be left out where only the client's own site knows it (docs/deploy.md); `also` is more data of the same
    client; `rank` its own, where the method takes lower ranks than the adapter's. `key` is the public half of the
    site's key, as `fedsrd key` prints it: across a network only who holds the other half has the name. A run in one
    process has no use for it, and a run may be resumed with other keys.
    """

    name: Name
    data: DataSection | None = None
    also: list[DataSection] = []
    rank: Positive | None = None
    key: PublicKey | None = None

    @property
    def sections(self) -> tuple[DataSection, ...]:
        """All of its data that the recipe knows."""
        return () if self.data is None else (self.data, *self.also)


RobustRule = Literal["none", "krum", "multi-krum", "trimmed-mean", "median", "geometric-median"]


class ParticipationSection(_Section):
    """Who takes part in a round, and which updates count.

    Attributes:
        fraction: share of the clients that are asked in a round.
        minimum: fewest usable updates that a round needs.
        deadline: seconds after which a round closes with whoever has answered (across a network; in one process
            everybody is waited for).
        attempts: how many times clients are asked before a round with too few usable updates ends the run.
        norm_bound: an update whose norm is more than so many times what is usual is left out: the round's median, or of
            one or two updates, what the client, or others, had accepted before (docs/deploy.md); 0 for no bound.
        max_share: with weighting = "examples", the largest share of one client in a round: what it has above that is
            shared among the others. At 0.5 no client counts for more than all others together, and of two each counts
            for half; 1 for no bound. Where equal shares are larger, shares are equal.
        robust: how updates become one where some clients may lie: "krum" takes the one that has the nearest neighbours,
            "multi-krum" all but the farthest `byzantine`, "geometric-median" weighs those less that are far from the
            rest; "trimmed-mean" and "median" go element by element, where all clients send the same elements.
        byzantine: clients of a round that may lie.
    """

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    minimum: Positive = 1
    deadline: Annotated[float, Field(gt=0, le=1e8)] = 3600.0
    attempts: Positive = 3
    norm_bound: Annotated[float, Field(ge=0, le=1e9)] = 10.0
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    robust: RobustRule = "none"
    byzantine: Annotated[int, Field(ge=0, le=1 << 16)] = 1


class EvaluationSet(_Section):
    """One held-out set. In-domain sets are averaged apart from the others."""

    name: Name
    data: DataSection
    in_domain: bool = True


class EvaluationSection(_Section):
    """How quality is measured: the mean negative log-likelihood of the response's tokens, set by set, and benchmarks.

    Attributes:
        every: rounds between evaluations; 0 for before and after only.
        examples: of each set.
        batch_size: sequences a batch.
        benchmarks: of the embedded suite (docs/evaluate.md), measured before and after the run.
        benchmark_examples: of each benchmark.
        samples: held-out prompts of each set that are answered before and after the run, for the report; the run's
            folder then holds them and their answers.
        sets: held-out sets.
    """

    every: NotNegative = 0
    examples: Positive = 32
    batch_size: Positive = 8
    benchmarks: list[str] = []
    benchmark_examples: Positive = 16
    samples: NotNegative = 0
    sets: list[EvaluationSet] = []


class Recipe(_Section):
    """A whole run. `environment` records the libraries' versions of a finished run and is ignored on input."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    rounds: Positive = 10
    weighting: Literal["uniform", "examples"] = "uniform"
    model: ModelSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    method: Annotated[dict[str, Any], Field(validate_default=True)] = {"name": "fedsrd"}
    server_optimizer: ServerOptimizerOptions | None = None
    wire: WireSection = WireSection()
    participation: ParticipationSection = ParticipationSection()
    privacy: PrivacySection = PrivacySection()
    clients: Annotated[list[ClientSection], Field(min_length=1)]
    evaluation: EvaluationSection = EvaluationSection()
    environment: dict[str, str] = {}

    @field_validator("method")
    @classmethod
    def _resolve_method(cls, given: dict[str, Any]) -> dict[str, Any]:
        kind, options = chosen_method(given)
        return {"name": kind.name, **options.model_dump()}

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Recipe":
        for what, found in (("clients", self.clients), ("evaluation.sets", self.evaluation.sets)):
            seen: set[str] = set()
            for entry in found:
                if entry.name in seen:
                    raise ValueError(f"{what}: two are called {entry.name!r}; give each its own name")
                seen.add(entry.name)
        keys: dict[str, str] = {}
        for client in self.clients:
            if client.key is not None and keys.setdefault(client.key, client.name) != client.name:
                raise ValueError(
                    f"clients: {keys[client.key]!r} and {client.name!r} have one key; each site has its own"
                )
        if self.privacy.examples is not None:
            if self.training.packing:
                raise ValueError(
                    "training.packing = true with [privacy.examples]: packed examples lie in one sequence, whose "
                    "gradient no clip takes apart; expected packing = false"
                )
            if self.model.gradient_checkpointing:
                raise ValueError(
                    "model.gradient_checkpointing = true with [privacy.examples]: gradients by example are wrong "
                    "then; expected false, and a smaller batch_size"
                )
        if self.training.warmup and self.training.warmup >= self.rounds:
            raise ValueError(f"training.warmup = {self.training.warmup}: expected fewer than rounds = {self.rounds}")
        if self.participation.minimum > len(self.clients):
            raise ValueError(
                f"participation.minimum = {self.participation.minimum}: there are {len(self.clients)} clients"
            )
        return self

    @property
    def summed(self) -> SumOptions | None:
        """How updates are added up as integers; None where they are not."""
        if self.privacy.secure_aggregation is None:
            return self.wire.sum
        return self.wire.sum or SumOptions()

    def resolved(self) -> dict[str, Any]:
        """Everything but the environment and the clients' keys, defaults filled in: what two runs must share to be the
        same run.
        """
        return self.model_dump(exclude={"environment": True, "clients": {"__all__": {"key"}}}, exclude_none=True)

    def to_toml(self, environment: Mapping[str, str]) -> str:
        """The resolved recipe as TOML, with the versions of what ran it."""
        tree = self.model_dump(exclude={"environment"}, exclude_none=True)
        return tomli_w.dumps({**tree, "environment": dict(environment)})


def load(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, or the embedded default when `path` is None, with `key=value` overrides on top.

    Args:
        path: a TOML file, or the name of a recipe of the package.
        overrides: such as "training.steps=8" or "clients.0.name=ward"; values are TOML, else text. Another
            "method.name" takes the options of the recipe's method away (`dropped` names them).

    Raises:
        RecipeError: the file is missing or no TOML, a key is unknown (the nearest known one is named), or a value has
            the wrong type or range.
    """
    tree, where = read(path, overrides)
    if "compare" in tree:
        raise RecipeError(f"{where} has a [compare] table, so it is many runs: fedsrd compare {where}")
    return parse(tree, where)


def dropped(path: Path | None, overrides: Sequence[str]) -> list[str]:
    """The options of the recipe's method that overrides take away, because they name another method. Arguments and
    errors as `load`.
    """
    if not any(_read_override(override)[0].partition(".")[0] == "method" for override in overrides):
        return []
    before, after = (read(path, given)[0].get("method", {}) for given in ((), overrides))
    if not isinstance(before, dict) or not isinstance(after, dict) or before.get("name") == after.get("name"):
        return []
    return [key for key in before if key not in after]


def read(path: Path | None, overrides: Sequence[str] = (), depth: int = 0) -> tuple[dict[str, Any], str]:
    """A recipe's TOML tree, unchecked, and what to call it in messages. Arguments and errors as `load`.

    A recipe with `extends = "other.toml"` (a path beside it) has that one's keys wherever it says nothing itself;
    tables are merged, lists and the [method] and [server_optimizer] tables replaced.
    """
    if path is None:
        tree = toml.loads(resources.files("fedsrd").joinpath("recipes/embedded.toml").read_text(encoding="utf-8"))
        where = "the embedded recipe"
    else:
        where = str(path)
        path = shipped.find(path) or path
        try:
            tree = toml.load(path)
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such file, nor a recipe that comes with fedsrd; expected TOML") from None
        except ValueError as error:
            raise RecipeError(f"{path}: {error}; expected a recipe in TOML") from None
    tree = _extended(tree, path, depth)
    changes = [_read_override(override) for override in overrides]
    # Another method begins with its own defaults, and what --set says of its options counts, in whatever order.
    for key, value, where_said in sorted(changes, key=lambda change: change[0] != "method.name"):
        if key == "method.name" and isinstance(tree.get("method"), dict) and tree["method"].get("name") != value:
            tree["method"] = {}
        put(tree, key, value, where_said)
    return tree, where


def parse(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from a parsed TOML tree. Raises RecipeError as `load`."""
    try:
        toml.check(tree)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    for keys, known, prefix in tables(Recipe, tree, ""):
        refuse_unknown(keys, known, prefix)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join([f"{where} is not a valid recipe:", *explain(error, "")])) from None


def chosen_method(given: Mapping[str, Any]) -> tuple[type["Method"], "MethodOptions"]:
    """The method that a [method] table names, and its options, checked. Raises RecipeError as `load`."""
    from fedsrd import methods

    name = given.get("name")
    if not isinstance(name, str):
        raise RecipeError(f"method.name = {foreign(name)!r}: expected name = one of {', '.join(methods.names())}")
    kind = methods.get(name)
    return kind, method_options(kind.Options, {key: value for key, value in given.items() if key != "name"})


def method_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """A method's options, checked. Raises RecipeError as `load`."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        # Afterwards: of an option that has moved, the method itself says where to.
        if any(problem["type"] == "extra_forbidden" for problem in error.errors()):
            refuse_unknown(given, list(kind.model_fields), "method")
        raise RecipeError("\n".join(explain(error, "method."))) from None


def _extended(tree: dict[str, Any], path: Path | None, depth: int) -> dict[str, Any]:
    other = tree.pop("extends", None)
    if other is None:
        return tree
    if not isinstance(other, str) or path is None or depth > 8:
        raise RecipeError(
            f"extends = {foreign(other)!r}: expected the path of another recipe, and no recipe that extends itself"
        )
    return _merged(read(path.parent / other, depth=depth + 1)[0], tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        # One method's options mean nothing to another, one optimizer's neither.
        whole = ("method", "server_optimizer", "grid")
        result[key] = _merged(result[key], value) if both and key not in whole else value
    return result


def _read_override(override: str) -> tuple[str, Any, str]:
    """The key and value of "key=value", and what to call it in messages. Raises RecipeError as `load`."""
    key, equals, raw = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {foreign(override)!r}: expected key=value, such as training.steps=8")
    where = f"--set {foreign(override)!r}"
    value: Any = raw.strip()
    try:
        found = tomllib.loads(f"value = {value}")
        # Several lines may be several keys: none of them is passed over.
        value = found["value"] if list(found) == ["value"] else value
    except tomllib.TOMLDecodeError:
        pass
    except (RecursionError, ValueError):
        raise RecipeError(f"{where}: the value is nested too deeply, or a number of too many digits") from None
    if len(parts) > toml.DEEPEST:
        raise RecipeError(f"{where}: the key has {len(parts)} parts; no recipe is so deep")
    return key.strip(), value, where


def put(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets one value of a tree, in place, by its dotted key. Raises RecipeError, naming `where`, if there is no such
    place.
    """
    parts = key.split(".")
    node: Any = tree
    try:
        for part in parts[:-1]:
            node = node[_place(part)] if isinstance(node, list) else node.setdefault(part, {})
        last = parts[-1]
        if isinstance(node, list):
            node[_place(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise RecipeError(f"{where}: the recipe has nothing at {foreign(key, 100)!r}") from None


def _place(part: str) -> int:
    """A place in a list. Python's own reading takes -1, 1_0 and other scripts' digits too."""
    if not (part.isascii() and part.isdecimal() and len(part) < 10):
        raise ValueError
    return int(part)

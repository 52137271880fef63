"""From a recipe to the objects of a run, whatever engine carries the bytes; and all checks before weights are read."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from fedsrd import methods
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import RecipeError
from fedsrd.explain import explain
from fedsrd.federation.robust import BY_ELEMENT, Robust, least, most
from fedsrd.federation.sampling import share
from fedsrd.federation.server import Server
from fedsrd.federation.session import Assets, Observer, check_data
from fedsrd.federation.transition import FederationConfig
from fedsrd.methods import ServerOptimizer, ServerOptimizerOptions, capabilities
from fedsrd.privacy.central import CentralNoise
from fedsrd.privacy.options import ClientPrivacy
from fedsrd.privacy.stream import public
from fedsrd.privacy.terms import needed
from fedsrd.recipe import Recipe, chosen_method
from fedsrd.runs.folder import RunFolder
from fedsrd.wire import WireOptions

FEW = 7
"""Levels of a sum that need error feedback, if there are fewer."""


@dataclass(frozen=True)
class Prepared:
    """All that was checked before anything expensive started.

    Attributes:
        recipe: what is run.
        folder: where it is kept.
        table: the model's trained tensors.
        lora: PEFT's config of the adapter.
        resume: whether the folder's run is continued.
    """

    recipe: Recipe
    folder: RunFolder
    table: TensorTable
    lora: Any
    resume: bool


def prepare(
    recipe: Recipe, folder: RunFolder, *, resume: bool, observer: Observer, assets: Assets | None = None
) -> Prepared:
    """Checks everything that can be checked before weights are loaded: folder, data, model and rank.

    Raises:
        RunFolderError, DataError, ModelError, RecipeError, PrivacyError: what is wrong and what to do. Nothing was
            written.
    """
    folder.check(recipe, resume=resume)
    if recipe.privacy.examples is not None:
        needed()
    table, lora = check(recipe, observer, assets or Assets())
    return Prepared(recipe, folder, table, lora, resume)


def check(recipe: Recipe, observer: Observer, assets: Assets) -> tuple[TensorTable, Any]:
    """What `prepare` checks without a folder: data, ranks, device and model. Gives the shapes and PEFT's config.

    Clients whose data only they know are passed over.

    Raises:
        DataError, ModelError, RecipeError: what is wrong and what to do.
    """
    sections = [(data, entry.name) for entry in recipe.clients for data in entry.sections]
    sections += [(entry.data, entry.name) for entry in recipe.evaluation.sets]
    for data, owner in sections:
        assets.get(partial(check_data, data, owner), "checked", data)
    for settle in settings_checks(recipe, observer):
        settle()
    return shapes(recipe, observer, assets)


def settings_checks(recipe: Recipe, observer: Observer) -> list[Callable[[], object]]:
    """What `check` does with neither data nor model, one call each, that raises as `check` where something is wrong."""
    from fedsrd.evaluation import embedded
    from fedsrd.training import loading

    return [
        partial(_check_ranks, recipe),
        partial(_check_privacy, recipe),
        partial(_check_robust, recipe),
        partial(_check_sums, recipe, observer),
        lambda: optimizer_of(method_of(recipe.method), recipe.server_optimizer),
        *(partial(embedded.named, name) for name in recipe.evaluation.benchmarks),
        partial(loading.pick_device, recipe.model.device),
        partial(_check_base, recipe),
    ]


def _check_base(recipe: Recipe) -> None:
    """Refuses a method that a quantised base cannot follow. Raises RecipeError."""
    if recipe.model.quantization != "none":
        where = f"model.quantization = {recipe.model.quantization!r}"
        capabilities.check(method_of(recipe.method), capabilities.QUANTISED_BASE, where)


def shapes(recipe: Recipe, observer: Observer, assets: Assets) -> tuple[TensorTable, Any]:
    """The adapted modules' shapes, from the model's config alone, and PEFT's config. Raises ModelError as `check`."""
    from fedsrd.training import models

    lora = models.lora_config(recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets)
    table = assets.get(
        partial(models.tensor_table, recipe.model.id, lora, recipe.model.revision, observer.say),
        "table",
        recipe.model,
        recipe.lora,
    )
    return table, lora


def method_of(chosen: Mapping[str, Any]) -> methods.Method:
    """The method of a [method] table, a recipe's or what a server says. Raises RecipeError where it is none of ours."""
    kind, options = chosen_method(chosen)
    return kind(options)


def optimizer_of(
    method: methods.Method, chosen: ServerOptimizerOptions | Mapping[str, Any] | None
) -> ServerOptimizer | None:
    """The server optimizer: the one that was chosen, else the method's own, else none.

    Raises:
        RecipeError: a key of it is wrong, or the method makes no step.
    """
    if chosen is not None:
        capabilities.check(method, capabilities.SERVER_OPTIMIZER, "server_optimizer")
    if isinstance(chosen, Mapping):
        try:
            chosen = ServerOptimizerOptions.model_validate(dict(chosen))
        except ValidationError as error:
            raise RecipeError("\n".join(explain(error, "server_optimizer."))) from None
    options = chosen or method.default_optimizer
    return None if options is None else ServerOptimizer(options)


def config_of(recipe: Recipe, table: TensorTable) -> FederationConfig:
    """What the recipe's server and clients share."""
    method = method_of(recipe.method)
    optimizer = optimizer_of(method, recipe.server_optimizer)
    wire = recipe.wire
    return FederationConfig(
        method,
        table,
        recipe.seed,
        wire.uplink,
        wire.downlink,
        optimizer,
        clip_of(recipe),
        recipe.summed,
        noise_of(recipe),
        digest_of(told(recipe)),
    )


def told(recipe: Recipe) -> dict[str, Any]:
    """The tables that every client is told of a recipe: model, LoRA, training, privacy, and how many rounds."""
    # How many rounds there are decides on the noise, where the recipe says an epsilon.
    return recipe.model_dump(include={"model", "lora", "training", "rounds", "privacy"}, exclude_none=True)


def digest_of(tables: Mapping[str, Any]) -> str:
    """SHA-256 of tables as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def noise_of(recipe: Recipe) -> tuple[ClientPrivacy, int] | None:
    """What every client adds to what is masked, and how many shares of it a sum has at least; None: nothing."""
    asked, secure = recipe.privacy.clients, recipe.privacy.secure_aggregation
    return None if asked is None or secure is None else (asked, secure.threshold)


def clip_of(recipe: Recipe) -> float | None:
    """L2 norm to which clients scale down an update whose noise is the server's; None: as it is."""
    asked = recipe.privacy.clients
    return None if asked is None or noise_of(recipe) is not None else asked.clip


def server_of(recipe: Recipe, config: FederationConfig, secret: Callable[[], bytes] | None = None) -> Server:
    """The recipe's server, at the start.

    Args:
        recipe: the recipe.
        config: of `config_of`.
        secret: gives that of the server's noise; None: it follows from the recipe's seed, for runs in one process.
    """
    asked, private = recipe.participation, recipe.privacy.clients
    noise = None
    if private is not None and noise_of(recipe) is None:
        noise = CentralNoise(private.noise_multiplier, private.clip, secret or partial(public, recipe.seed))
    return Server(
        config,
        recipe.weighting,
        {entry.name: entry.rank for entry in recipe.clients},
        minimum=1 if config.method.pooled else asked.minimum,
        norm_bound=asked.norm_bound or None,
        max_share=asked.max_share,
        noise=noise,
        far=recipe.training.learning_rate * recipe.training.steps,
        robust=None if asked.robust == "none" else Robust(asked.robust, asked.byzantine),
    )


def environment() -> dict[str, str]:
    """Versions of what computes: Python, torch and the libraries that training goes through."""
    packages = ("fedsrd", "torch", "numpy", "transformers", "peft", "datasets", "safetensors")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _check_privacy(recipe: Recipe) -> None:
    """Refuses what cannot be promised. Raises RecipeError."""
    asked, method = recipe.privacy, method_of(recipe.method)
    if asked.examples is not None and method.pooled:
        raise RecipeError(
            f"method.name = {method.name!r} with [privacy.examples]: all data lies in one place there, and no client "
            "has a budget of its own"
        )
    if asked.clients is None:
        return
    needed()
    capabilities.check(method, capabilities.SUM_ONLY, "[privacy.clients]")
    chosen = getattr(method.options, "sparsifier", "dense")
    if chosen not in ("dense", "cyclic"):
        raise RecipeError(
            f'method.sparsifier = "{chosen}" with [privacy.clients]: which elements a client chooses says something of '
            'its data, and noise on values does not hide it; expected "dense" or "cyclic"'
        )
    if asked.secure_aggregation is None and recipe.wire.sum is not None:
        raise RecipeError(
            "[privacy.clients] with wire.sum and without privacy.secure_aggregation: shares of noise protect nobody "
            "where each update is seen; leave wire.sum out, or add privacy.secure_aggregation"
        )
    if asked.secure_aggregation is not None and recipe.weighting != "uniform":
        raise RecipeError(
            f'weighting = "{recipe.weighting}" with [privacy.clients] and privacy.secure_aggregation: the sum of the '
            'weights would be told without noise; expected weighting = "uniform"'
        )


def _check_sums(recipe: Recipe, observer: Observer) -> None:
    """Refuses what cannot be added up, or not be unmasked. Raises RecipeError."""
    options, secure = recipe.summed, recipe.privacy.secure_aggregation
    if options is None:
        return
    method, where = method_of(recipe.method), "wire.sum" if secure is None else "privacy.secure_aggregation"
    capabilities.check(method, capabilities.MASKED_SUM, f"{where} with method.name = {method.name!r}")
    if recipe.weighting == "examples" and options.examples is None:
        raise RecipeError(
            f'weighting = "examples" with {where}: the server sees no single update that it could weigh; expected '
            'wire.sum.examples, as how many a client counts at most, or weighting = "uniform"'
        )
    if recipe.weighting == "uniform" and options.examples is not None:
        raise RecipeError('wire.sum.examples with weighting = "uniform": expected weighting = "examples", or neither')
    if options.levels < FEW and getattr(method.options, "feedback", "none") == "none":
        observer.warn(
            f"wire.sum.levels = {options.levels} without error feedback: what rounding takes is lost; set "
            f'method.feedback = "ef14", or levels of {FEW} and more'
        )
    if recipe.wire.uplink != WireOptions():
        observer.say("wire.uplink is not used: updates travel as integers ([wire.sum])")
    if secure is None:
        return
    from fedsrd.privacy.secure import crypto

    crypto.needed()
    asked = recipe.participation
    count = share(len(recipe.clients), asked.fraction, asked.minimum)
    if not count < 2 * secure.threshold <= 2 * count:
        raise RecipeError(
            f"privacy.secure_aggregation.threshold = {secure.threshold}: {count} of {len(recipe.clients)} clients are "
            f"asked in a round; expected {count // 2 + 1} to {count}: more than half, and at most all"
            + (", and at least two clients" if count < 2 else "")
        )
    observer.say("Secure aggregation: the server sees sums alone, so that participation.norm_bound is not applied")


def _check_robust(recipe: Recipe) -> None:
    """Refuses a robust rule that cannot hold. Raises RecipeError."""
    asked, method = recipe.participation, method_of(recipe.method)
    if asked.robust == "none":
        return
    where = f'participation.robust = "{asked.robust}"'
    if recipe.privacy.secure_aggregation is not None:
        raise RecipeError(
            f"{where} with privacy.secure_aggregation: the server sees the sum of the updates and can judge none of "
            "them; expected one of the two"
        )
    if recipe.summed is not None or recipe.privacy.clients is not None:
        other = "wire.sum" if recipe.summed is not None else "[privacy.clients]"
        raise RecipeError(f"{where} with {other}: it needs each update as it is; expected one of the two")
    capabilities.check(method, capabilities.ROBUST, where)
    if asked.robust in BY_ELEMENT:
        capabilities.check(method, capabilities.BY_ELEMENT, where)
    if asked.robust == "geometric-median":
        capabilities.check(method, capabilities.REWEIGHED, where)
    if recipe.weighting != "uniform":
        raise RecipeError(
            f'weighting = "{recipe.weighting}" with {where}: how many examples it has is a client\'s own word, and one '
            'that lies could count for as much as all others; expected weighting = "uniform"'
        )
    lower = [entry.name for entry in recipe.clients if entry.rank not in (None, recipe.lora.rank)]
    if lower:
        raise RecipeError(
            f"{where}: the rank of {', '.join(lower)} is not lora.rank = {recipe.lora.rank}, and changes of "
            "models that begin as others have no distance; expected one rank for all"
        )
    count = share(len(recipe.clients), asked.fraction, asked.minimum)
    needed = least(asked.robust, asked.byzantine)
    if count < needed:
        raise RecipeError(
            f"{where} with participation.byzantine = {asked.byzantine}: {count} clients are asked in a round; expected "
            f"at least {needed}, or fewer that may lie"
        )
    kept = most(asked.robust, asked.byzantine, count)
    if kept < asked.minimum:
        raise RecipeError(
            f"{where} with participation.minimum = {asked.minimum}: the rule keeps {kept} of {count} updates, so no "
            f"round could count; expected a minimum of at most {kept}"
        )


def _check_ranks(recipe: Recipe) -> None:
    for entry in recipe.clients:
        if entry.rank is None or entry.rank == recipe.lora.rank:
            continue
        if entry.rank > recipe.lora.rank:
            raise RecipeError(
                f"client {entry.name}: rank = {entry.rank} is more than the adapter's, lora.rank = {recipe.lora.rank}"
            )
        where = f"client {entry.name}: rank = {entry.rank}, of lora.rank = {recipe.lora.rank}"
        capabilities.check(method_of(recipe.method), capabilities.LOWER_RANKS, where)

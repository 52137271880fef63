"""From a recipe to the objects of a run, whatever engine carries the bytes; and all checks before weights are read."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedsrd import methods
from fedsrd.core.factors import ShapeTable
from fedsrd.errors import RecipeError
from fedsrd.federation.server import Server
from fedsrd.federation.session import Assets, Observer, check_data
from fedsrd.recipe import Recipe
from fedsrd.runs.folder import RunFolder


@dataclass(frozen=True)
class Prepared:
    """All that was checked before anything expensive started."""

    recipe: Recipe
    folder: RunFolder
    table: ShapeTable
    lora: Any


def prepare(
    recipe: Recipe, folder: RunFolder, *, resume: bool, observer: Observer, assets: Assets | None = None
) -> Prepared:
    """Checks everything that can be checked before weights are loaded: folder, data, model and rank.

    Raises:
        RunFolderError, DataError, ModelError, RecipeError: what is wrong and what to do. Nothing was written.
    """
    if resume:
        folder.check_resumable(recipe)
    else:
        folder.check_new()
    table, lora = check(recipe, observer, assets or Assets())
    return Prepared(recipe, folder, table, lora)


def check(recipe: Recipe, observer: Observer, assets: Assets) -> tuple[ShapeTable, Any]:
    """What `prepare` checks without a folder: data, ranks, device and model. Gives the shapes and PEFT's config.

    Clients whose data only they know are passed over.

    Raises:
        DataError, ModelError, RecipeError: what is wrong and what to do.
    """
    from fedsrd.evaluation import embedded
    from fedsrd.training import loading

    sections = [(data, entry.name) for entry in recipe.clients for data in entry.sections]
    sections += [(entry.data, entry.name) for entry in recipe.evaluation.sets]
    for data, owner in sections:
        assets.get(partial(check_data, data, owner), "checked", data)
    _check_ranks(recipe)
    for name in recipe.evaluation.benchmarks:
        embedded.named(name)
    loading.pick_device(recipe.model.device)
    if recipe.model.quantization != "none" and methods.get(recipe.method["name"]).changes_base:
        fits = [name for name in methods.names() if not methods.get(name).changes_base]
        raise RecipeError(
            f"model.quantization = {recipe.model.quantization!r}: {recipe.method['name']} changes the base model, and "
            f"a quantised one cannot be changed; methods that leave it as it is: {', '.join(fits)}"
        )
    return shapes(recipe, observer, assets)


def shapes(recipe: Recipe, observer: Observer, assets: Assets) -> tuple[ShapeTable, Any]:
    """The adapted modules' shapes, from the model's config alone, and PEFT's config. Raises ModelError as `check`."""
    from fedsrd.training import models

    lora = models.lora_config(recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.targets)
    table = assets.get(
        partial(models.shape_table, recipe.model.id, lora, recipe.model.revision, observer.say),
        "table",
        recipe.model,
        recipe.lora,
    )
    return table, lora


def method_of(chosen: Mapping[str, Any]) -> methods.Method:
    """The method of a recipe's [method] table."""
    kind = methods.get(chosen["name"])
    return kind(kind.Options.model_validate({key: value for key, value in chosen.items() if key != "name"}))


def server_of(recipe: Recipe, table: ShapeTable, method: methods.Method) -> Server:
    """The recipe's server, at the start."""
    asked = recipe.participation
    return Server(
        table,
        method,
        recipe.weighting,
        recipe.seed,
        recipe.wire.downlink,
        {entry.name: entry.rank for entry in recipe.clients},
        minimum=1 if method.pooled else asked.minimum,
        norm_bound=asked.norm_bound or None,
    )


def environment() -> dict[str, str]:
    """Versions of what computes: Python, torch and the libraries that training goes through."""
    packages = ("fedsrd", "torch", "numpy", "transformers", "peft", "datasets", "safetensors")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _check_ranks(recipe: Recipe) -> None:
    method = methods.get(recipe.method["name"])
    for entry in recipe.clients:
        if entry.rank is None or entry.rank == recipe.lora.rank:
            continue
        if entry.rank > recipe.lora.rank:
            raise RecipeError(
                f"client {entry.name}: rank = {entry.rank} is more than the adapter's, lora.rank = {recipe.lora.rank}"
            )
        if not method.any_rank:
            able = [name for name in methods.names() if methods.get(name).any_rank]
            raise RecipeError(
                f"client {entry.name}: rank = {entry.rank}, but {method.name} needs every client at lora.rank = "
                f"{recipe.lora.rank}; methods that take lower ranks: {', '.join(able)}"
            )

"""What is evaluated: a base model, or an adapter on it, found from a run's folder, an adapter's folder, or a model."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedsrd import toml
from fedsrd.errors import EvaluationError
from fedsrd.files import looks_local
from fedsrd.runs.folder import RunFolder

BASE = "base model"


@dataclass(frozen=True)
class Subject:
    """One model to evaluate.

    Attributes:
        name: what it is called in tables and folders.
        model: the base model: a Hugging Face id, a folder, or an embedded model.
        revision: the hub's, if any.
        adapter: the folder of a PEFT adapter; None for the base model itself.
        prompt: the prompt style that it was trained with, "chat", "alpaca" or "plain"; None where unknown.
        dtype: of the weights in its recipe; None where unknown.
        quantization: of the base in its recipe.
    """

    name: str
    model: str
    revision: str | None = None
    adapter: Path | None = None
    prompt: str | None = None
    dtype: str | None = None
    quantization: Literal["none", "nf4"] = "none"

    @property
    def base(self) -> "Subject":
        """The model that the adapter changes."""
        return replace(self, name=BASE, adapter=None)


def resolve(targets: Sequence[str]) -> list[Subject]:
    """The subjects that the targets name: a run has one, or one for each client's own adapter.

    Raises:
        EvaluationError: there is nothing to evaluate at a path.
    """
    found: dict[str, Subject] = {}
    for target in targets:
        for subject in _resolve(target):
            name, number = subject.name, 2
            while name in found:
                name, number = f"{subject.name}-{number}", number + 1
            found[name] = replace(subject, name=name)
    return list(found.values())


def with_bases(found: Sequence[Subject]) -> list[Subject]:
    """The subjects, with the base model of each adapter before them, once."""
    bases: dict[tuple[object, ...], Subject] = {}
    for subject in found:
        if subject.adapter is not None:
            bases.setdefault(
                (subject.model, subject.revision, subject.prompt, subject.dtype, subject.quantization), subject.base
            )
    distinct = [replace(base, name=BASE if len(bases) == 1 else f"{BASE} {base.model}") for base in bases.values()]
    return [*distinct, *found]


def _resolve(target: str) -> list[Subject]:
    path = Path(os.path.expanduser(target))
    if (path / "recipe.toml").is_file():
        return _of_run(path)
    if (path / "adapter_config.json").is_file():
        return [_of_adapter(path)]
    if path.is_dir() and not (path / "config.json").is_file():
        raise EvaluationError(
            f"{target}: nothing to evaluate; expected a run's folder (recipe.toml), an adapter's "
            "(adapter_config.json), or a model's (config.json)"
        )
    if not path.exists() and looks_local(target):
        raise EvaluationError(f"{target}: no such folder; expected a run, an adapter, or a model")
    return [Subject(path.name if path.is_dir() else target, target)]


def _of_run(path: Path) -> list[Subject]:
    try:
        recipe = toml.load(path / "recipe.toml")
        model, prompt = recipe["model"], recipe["training"]["prompt"]
        whole = Subject(
            "",
            model["id"],
            model.get("revision"),
            prompt=prompt,
            dtype=model["dtype"],
            quantization=model.get("quantization", "none"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise EvaluationError(f"{path}/recipe.toml: not as a run writes it; expected a run's folder") from None
    folder = RunFolder(path)
    found = folder.adapters()
    if not found:
        raise EvaluationError(f"{path}: the run has no adapter yet; it writes one after its first round")
    run = path.resolve().name
    return [
        replace(whole, name=run if place == folder.adapter else f"{run}-{place.name}", adapter=place.resolve())
        for place in found
    ]


def _of_adapter(path: Path) -> Subject:
    whole = path.resolve()
    name = whole.parent.name if whole.name == "adapter" else whole.name
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        raise EvaluationError(f"{path}/adapter_config.json: not as PEFT writes it; expected an adapter") from None
    if isinstance(base, str) and base:
        return Subject(name, base, revision, whole)
    # A local base model is named by the run's recipe alone, which stays at home.
    for run in (whole.parent, whole.parent.parent):
        if (run / "recipe.toml").is_file():
            for found in _of_run(run):
                if found.adapter == whole:
                    return Subject(name, found.model, found.revision, whole)
    raise EvaluationError(
        f"{path}/adapter_config.json: names no base_model_name_or_path, as the base model was a folder; write that "
        "folder's path there, or name the run's folder"
    )

"""A model's sizes from its config alone."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fedsrd import hub
from fedsrd.core import lora
from fedsrd.core.lora import LoraModule
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import ModelError
from fedsrd.files import looks_local
from fedsrd.planning import layout
from fedsrd.text import foreign

KNOWN = {"meta-llama/Llama-3.2-3B": "llama-3.2-3b", "Qwen/Qwen2-7B": "qwen2-7b"}
"""Models whose sizes come with this package, so that planning for them needs no hub. Sizes: their public configs."""


@dataclass(frozen=True)
class Architecture:
    """A base model's sizes.

    Attributes:
        model: as it was named.
        table: the adapter's tensors.
        parameters: of the base model.
        layers: number of decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layer.
        key_value: width of keys, and of values.
        vocabulary: number of tokens.
    """

    model: str
    table: TensorTable
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int


def architecture(model: str, rank: int, targets: str | list[str], revision: str | None = None) -> Architecture:
    """The sizes of a model: a Hugging Face id, a folder, a config.json, or an embedded model.

    Raises:
        ModelError: there is no such model, or it cannot be adapted so.
    """
    from fedsrd.training import loading, models

    with ExitStack() as stack:
        source = _source(model, stack)
        found = _of_layout(model, source, rank, targets, revision)
        if found is not None:
            return found
        config_of_lora = models.lora_config(rank, 2 * rank, 0.0, targets)
        try:
            empty = loading.empty_model(source, revision)
        except ModelError as error:
            raise ModelError(str(error).replace(source, model)) from None
        parameters = sum({id(p): p.numel() for p in empty.parameters()}.values())
        config = empty.config.get_text_config()
        table = models.adapted_table(empty, config_of_lora, model)
    try:
        heads = int(config.num_attention_heads)
        head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return Architecture(
            model,
            table,
            parameters,
            int(config.num_hidden_layers),
            int(config.hidden_size),
            int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
            int(getattr(config, "num_key_value_heads", None) or heads) * head,
            int(config.vocab_size),
        )
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"--model {model}: its config does not say its sizes as others do: {foreign(error)}") from None


def _of_layout(
    model: str, source: str, rank: int, targets: str | list[str], revision: str | None
) -> Architecture | None:
    """From the config alone, without transformers; None where that does not say all, or something is wrong with it."""
    folder = _folder(source, revision)
    known = None if folder is None else layout.read(folder)
    if known is None:
        return None
    modules = layout.adapted(known, targets)
    if not modules or any(rank > min(shape) for shape in modules.values()):
        return None
    table = lora.table_of(LoraModule(name, *shape, rank) for name, shape in modules.items())
    sizes = (known.parameters, known.layers, known.hidden, known.intermediate, known.key_value, known.vocabulary)
    return Architecture(model, table, *sizes)


def _folder(source: str, revision: str | None) -> Path | None:
    """Where a model's config.json lies: its folder, or the hub's cache, after it was fetched. None: nobody knows.

    Raises:
        ModelError: it is of the hub, not in the cache, and the hub cannot be reached.
    """
    from fedsrd.training import embedded, loading

    if source.startswith(embedded.PREFIX):
        return Path(embedded.resolve(source))
    if os.path.isdir(source):
        return Path(source)
    if looks_local(source):
        return None
    from huggingface_hub import hf_hub_download

    try:
        alone = bool(hub.out_of_reach(source))
        with hub.telling(source, hub.SILENT):
            file = hf_hub_download(source, "config.json", revision=revision, local_files_only=alone)
        return Path(file).parent
    except Exception as error:  # what is wrong with it, transformers says as everywhere else
        if isinstance(error, OSError) and (reason := loading.out_of_reach(source)):
            raise ModelError(f"model.id = {foreign(source)!r}: cannot be loaded: {reason}") from None
        return None


def _source(model: str, stack: ExitStack) -> str:
    if model in KNOWN:
        folder = resources.files("fedsrd").joinpath(f"planning/facts/{KNOWN[model]}")
        return str(stack.enter_context(resources.as_file(folder)))
    path = Path(os.path.expanduser(model))
    if path.suffix != ".json":
        return model
    if not path.is_file():
        raise ModelError(f"--model {model}: no such file; expected a config.json, a folder, or a Hugging Face id")
    # transformers reads a config out of a folder, under one name only.
    scratch: Any = stack.enter_context(tempfile.TemporaryDirectory())
    shutil.copy(path, Path(scratch) / "config.json")
    return str(scratch)

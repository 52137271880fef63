"""A model's sizes from its config alone."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fedsrd.core.tensors import TensorTable
from fedsrd.errors import ModelError
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
        lora = models.lora_config(rank, 2 * rank, 0.0, targets)
        try:
            empty = loading.empty_model(source, revision)
        except ModelError as error:
            raise ModelError(str(error).replace(source, model)) from None
        parameters = sum({id(p): p.numel() for p in empty.parameters()}.values())
        config = empty.config.get_text_config()
        table = models.adapted_table(empty, lora, model)
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

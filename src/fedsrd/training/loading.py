"""Base models, read from a hub's cache or a folder: the one place that says how, and what is wrong when it fails."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fedsrd.errors import ModelError
from fedsrd.files import looks_local
from fedsrd.packages import Say, silent
from fedsrd.training import embedded
from fedsrd.training.options import BaseOptions
from fedsrd.training.quiet import quiet_libraries


def load_base(model_id: str, options: BaseOptions, say: Say = silent) -> tuple[Any, Any]:
    """A base model on its device, and its tokenizer.

    Args:
        model_id: a Hugging Face id, a folder, or an embedded model.
        options: how.
        say: told what takes long, and what the tokenizer lacks.

    Raises:
        ModelError: the model cannot be found, reached or read; the device or a library is not there; or the tokenizer
            has no end-of-text token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = pick_device(options.device)
    source = source_of(model_id, say)
    dtype = getattr(torch, options.dtype)
    how: dict[str, Any] = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    if options.quantization == "nf4":
        how |= {"quantization_config": _nf4(dtype), "device_map": {"": place}}
    with quiet_libraries(), _explained(model_id):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=options.revision)
        model = AutoModelForCausalLM.from_pretrained(
            # Never a pickle: in a federation, the server names the model.
            source,
            revision=options.revision,
            dtype=dtype,
            use_safetensors=True,
            **how,
        )
    check_tokenizer(tokenizer, model_id, say)
    return model.to(place) if options.quantization == "none" else model, tokenizer


def check_tokenizer(tokenizer: Any, model_id: str, say: Say = silent) -> None:
    """Says what a tokenizer lacks that is made up for.

    Raises:
        ModelError: it has no end-of-text token: a response would have no end.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.id = {model_id!r}: its tokenizer has no end-of-text token (eos_token); set one in it")
    if tokenizer.pad_token_id is None:
        say("The tokenizer has no padding token: end of text pads. Padding is masked by length, so it changes nothing")


def source_of(model_id: str, say: Say = silent) -> str:
    """Where a model is read from: its folder, or its id on the hub. Raises as `embedded.resolve`."""
    return embedded.resolve(model_id, say)


def commit_of(model_id: str, revision: str | None = None) -> str | None:
    """The hub's commit that a model's config is of; None for a folder. Raises ModelError as `tensor_table`."""
    from transformers import AutoConfig

    source = source_of(model_id)
    with quiet_libraries(), _explained(model_id):
        config = AutoConfig.from_pretrained(source, revision=revision)
    return getattr(config, "_commit_hash", None)


def empty_model(model_id: str, revision: str | None = None, say: Say = silent) -> Any:
    """A model without weights (meta device), from its config. Raises ModelError as `tensor_table`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = embedded.resolve(model_id, say)
    with quiet_libraries(), _explained(model_id):
        config = AutoConfig.from_pretrained(source, revision=revision)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)


def pick_device(name: str) -> torch.device:
    """The device of a recipe: "auto" is the first GPU, else the CPU.

    Raises:
        ModelError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f'model.device = {name!r}: expected "auto", "cpu" or "cuda"') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f'model.device = {name!r}: torch finds no GPU here; use "auto" or "cpu"')
    return device


@contextlib.contextmanager
def _explained(model_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        missing = "" if not looks_local(model_id) or Path(model_id).is_dir() else " (there is no such folder)"
        if "gated" in str(error).lower():
            raise ModelError(
                f"model.id = {model_id!r}: its weights are gated; accept the terms at "
                f"https://huggingface.co/{model_id}, log in here with `hf auth login`, and run again"
            ) from None
        raise ModelError(
            f"model.id = {model_id!r}{missing}: cannot be loaded as a causal language model: {reason}\n"
            "Expected a Hugging Face id that this machine can reach, a folder with config.json, or "
            f"{embedded.PREFIX}{embedded.SMOLLM2}."
        ) from None


def _nf4(dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"model.quantization = \"nf4\" needs bitsandbytes ({error}); install it with: pip install 'fedsrd[qlora]'"
        ) from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

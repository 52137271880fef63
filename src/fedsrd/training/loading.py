"""Base models, read from a hub's cache or a folder: the one place that says how, and what is wrong when it fails."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from fedsrd import hub
from fedsrd.errors import FedSRDError, ModelError
from fedsrd.files import looks_local
from fedsrd.packages import Say, silent
from fedsrd.text import foreign
from fedsrd.training import embedded
from fedsrd.training.options import BaseOptions
from fedsrd.training.quiet import quiet_libraries

TRUST = "FEDSRD_TRUST_REMOTE_CODE"
"""The environment variable of the machine that loads a model; no recipe and no server can set it (docs/models.md)."""
_SLOW = 3.0
"""Seconds after which a hub that answers is slow: transformers' own imports may take the first of them."""


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
    from transformers import AutoModelForCausalLM

    place = pick_device(options.device)
    source = source_of(model_id, say)
    dtype = getattr(torch, options.dtype)
    how: dict[str, Any] = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    if options.quantization == "nf4":
        how |= {"quantization_config": _nf4(dtype), "device_map": {"": place}}
    tokenizer = load_tokenizer(model_id, options.revision, say)
    with quiet_libraries(), _explained(model_id):
        model = AutoModelForCausalLM.from_pretrained(
            # Never a pickle: in a federation, the server names the model.
            source,
            dtype=dtype,
            use_safetensors=True,
            revision=options.revision,
            trust_remote_code=trusts(model_id, options.revision),
            **_within_reach(source, model_id),
            **how,
        )
    read_once(model)
    return model.to(place) if options.quantization == "none" else model, tokenizer


def load_tokenizer(model_id: str, revision: str | None = None, say: Say = silent) -> Any:
    """A base model's tokenizer alone. Arguments and errors as `load_base`."""
    from transformers import AutoTokenizer

    source = source_of(model_id, say)
    with quiet_libraries(), _explained(model_id), _telling(source, model_id):
        trust = trusts(model_id, revision)
        reach = _within_reach(source, model_id)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust, **reach)
    check_tokenizer(tokenizer, model_id, say)
    return tokenizer


def read_once(model: Any) -> None:
    """Has the output layer see its input as one matrix. Logits of a batch's last tokens are a slice of the hidden
    states, and of a slice torch makes a product for every sequence, each with a copy of the layer's weights: on a CPU a
    third of a training step.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))


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
    with quiet_libraries(), _explained(model_id), _telling(source, model_id):
        trust = trusts(model_id, revision)
        reach = _within_reach(source, model_id)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust, **reach)
    return getattr(config, "_commit_hash", None)


def empty_model(model_id: str, revision: str | None = None, say: Say = silent) -> Any:
    """A model without weights (meta device), from its config. Raises ModelError as `tensor_table`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = embedded.resolve(model_id, say)
    with quiet_libraries(), _explained(model_id):
        trust = trusts(model_id, revision)
        reach = _within_reach(source, model_id)
        with _telling(source, model_id):
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust, **reach)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def _within_reach(source: str, model_id: str) -> dict[str, Any]:
    """What every reader of transformers is told: without a way to the hub, to look into the cache alone."""
    return {"local_files_only": True} if _is_of_hub(source) and hub.out_of_reach(model_id) else {}


def _telling(source: str, model_id: str) -> contextlib.AbstractContextManager[None]:
    """Says what is waited for, where the hub answers slowly."""
    if not _is_of_hub(source) or hub.is_offline():
        return contextlib.nullcontext()
    return hub.telling(model_id, _SLOW)


def _is_of_hub(source: str) -> bool:
    return not (source.startswith(embedded.PREFIX) or looks_local(source) or os.path.isdir(source))


def trusts(model_id: str, revision: str | None = None) -> bool:
    """Whether the owner of this machine lets a model's own program code run: $FEDSRD_TRUST_REMOTE_CODE names it.

    The variable lists, with commas between, folders, and hub ids as ID@REVISION or ID. An id alone is the hub's default
    revision and no other: anybody may propose a revision of anybody's model there.
    """
    for entry in filter(None, (part.strip() for part in os.environ.get(TRUST, "").split(","))):
        if os.path.isdir(entry) and os.path.isdir(model_id):
            if os.path.realpath(entry) == os.path.realpath(model_id):
                return True
        elif entry == (model_id if revision is None else f"{model_id}@{revision}"):
            return True
    return False


def pick_device(name: str) -> torch.device:
    """The device of a recipe: "auto" is the first GPU, else the CPU.

    Raises:
        ModelError: it is no CPU or GPU, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch knows devices that compute nothing ("meta"), and some that nobody has.
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name, re.ASCII)
    if found is None:
        raise ModelError(f'model.device = {foreign(name, 80)!r}: expected "auto", "cpu", "cuda" or "cuda:N"')
    # The name's own number: torch.device("cuda:999").index is -25.
    if name.startswith("cuda") and int(found[1] or 0) >= torch.cuda.device_count():
        there = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU"
        raise ModelError(f'model.device = {name!r}: torch finds {there} here; use "auto" or "cpu"')
    return torch.device(name)


@contextlib.contextmanager
def _explained(model_id: str) -> Iterator[None]:
    try:
        yield
    except (FedSRDError, MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError)):
        raise
    except Exception as error:  # a folder of anybody's fails in every way that a library's readers have
        name = f"model.id = {foreign(model_id)!r}"
        text = str(error)
        reason = foreign(text.strip().splitlines()[0]) if text.strip() else type(error).__name__
        if not isinstance(error, OSError | ValueError | KeyError | ImportError):
            reason = f"{type(error).__name__}: {reason}"
        missing = "" if not looks_local(model_id) or os.path.isdir(model_id) else " (there is no such folder)"
        if "trust_remote_code" in text:
            raise ModelError(
                f"{name}: brings program code of its own (auto_map in its config), which is not run: whoever made it "
                "could read all data here. Choose a model that transformers knows; or, if you have read the code and "
                f"trust it, name the model in this machine's environment: {TRUST}={foreign(model_id)}"
            ) from None
        if "gated" in text.lower():
            raise ModelError(
                f"{name}: its weights are gated; accept the terms at "
                f"https://huggingface.co/{model_id}, log in here with `hf auth login`, and run again"
            ) from None
        if isinstance(error, OSError) and not missing and (unreachable := out_of_reach(model_id)):
            raise ModelError(f"{name}: cannot be loaded: {unreachable}") from None
        raise ModelError(
            f"{name}{missing}: cannot be loaded as a causal language model: {reason}\n"
            "Expected a Hugging Face id that this machine can reach (`hf auth login` for a private or gated one), a "
            f"folder with config.json, or {embedded.PREFIX}{embedded.SMOLLM2}."
        ) from None


def out_of_reach(model_id: str) -> str:
    """Why a model of the hub is not to be had, and what to do, where there is no way to the hub; else ""."""
    if not _is_of_hub(model_id):
        return ""
    if hub.is_offline():
        reason = "HF_HUB_OFFLINE is set"
        instead = "; or unset HF_HUB_OFFLINE"
    else:
        found = hub.out_of_reach(model_id)
        if not found:
            return ""
        reason = f"{hub.host()} cannot be reached ({found})"
        instead = (
            f"; behind a proxy set HTTPS_PROXY; on a slow link set {hub.TIMEOUT}=30; with HF_HUB_OFFLINE=1 nothing is "
            "asked"
        )
    return (
        f"{reason}, and the model, or a part of it, is not in this machine's cache. Name a folder that has it; or run "
        f"`hf download {foreign(model_id)}` where there is a network (a gated model: `hf auth login` first) and copy "
        f"the folder that it prints{instead}"
    )


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

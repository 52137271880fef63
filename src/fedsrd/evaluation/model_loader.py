"""Models to evaluate, loaded: a base once, its adapters on it one after the other."""

from dataclasses import dataclass
from typing import Any

import torch

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import cache
from fedsrd.evaluation.subjects import Subject
from fedsrd.packages import Say, silent
from fedsrd.training import loading
from fedsrd.training.options import BaseOptions


@dataclass
class LoadedModel:
    """A network with its tokenizer, where it computes."""

    model: Any
    tokenizer: Any
    device: torch.device


class ModelLoader:
    """Loads what is asked for, and keeps the base that was loaded last.

    Args:
        device: as in recipes.
        dtype: of base weights; None for each recipe's, or bfloat16.
        say: told what takes long.
    """

    def __init__(self, device: str = "auto", dtype: str | None = None, say: Say = silent) -> None:
        self.device = loading.pick_device(device)
        self._dtype = dtype
        self._say = say
        self._key: tuple[object, ...] = ()
        self._base: Any = None
        self._tokenizer: Any = None

    def dtype(self, subject: Subject) -> str:
        """Of this subject's base weights."""
        return self._dtype or subject.dtype or "bfloat16"

    def identity(self, subject: Subject) -> str:
        """A name for exactly this subject's weights (`evaluation.cache`); reads the base's config, not its weights."""
        loading.source_of(subject.model, self._say)
        base = cache.model_identity(subject.model, subject.revision)
        return base if subject.adapter is None else f"{base} {cache.adapter_identity(subject.adapter)}"

    def load(self, subject: Subject) -> LoadedModel:
        """The subject's network, until the next call.

        Raises:
            ModelError: the base cannot be loaded.
            EvaluationError: the adapter cannot be read, or does not fit the base.
        """
        key = (subject.model, subject.revision, self.dtype(subject), subject.quantization)
        if self._key != key:
            self._say(f"Loading {subject.model}")
            how = {"dtype": self.dtype(subject), "device": str(self.device), "quantization": subject.quantization}
            options = BaseOptions.model_validate({"revision": subject.revision, **how})
            self._base, self._tokenizer = loading.load_base(subject.model, options, self._say)
            self._key = key
        elif hasattr(self._base, "unload"):
            self._base = self._base.unload()
        if subject.adapter is not None:
            self._base = self._adapted(self._base, subject)
        self._base.eval()
        return LoadedModel(self._base, self._tokenizer, self.device)

    def _adapted(self, base: Any, subject: Subject) -> Any:
        from safetensors import safe_open

        from fedsrd.training.quiet import quiet_libraries

        with quiet_libraries():
            from peft import PeftModel, get_peft_model_state_dict

        assert subject.adapter is not None
        file = subject.adapter / "adapter_model.safetensors"
        advice = f"expected an adapter that was trained on {subject.model}"
        try:
            # Only safetensors: an adapter_model.bin is a pickle.
            with safe_open(str(file), "pt") as stored:
                names = set(stored.keys())
        except Exception as error:  # the library has no common class of errors
            raise EvaluationError(f"{file}: cannot be read as safetensors: {error}") from None
        try:
            with quiet_libraries():
                adapted = PeftModel.from_pretrained(base, str(subject.adapter), is_trainable=False)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "mismatch" in line and ":" in line and "shape" in line), lines[0])
            raise EvaluationError(f"{subject.adapter} does not fit {subject.model}: {reason}; {advice}") from None
        with quiet_libraries():
            wanted = set(get_peft_model_state_dict(adapted))
        if wanted != names:
            odd = sorted(wanted ^ names)
            raise EvaluationError(
                f"{subject.adapter} does not fit {subject.model}: {len(odd)} tensors have no counterpart, such as "
                f"{odd[0]}; {advice}"
            )
        return adapted

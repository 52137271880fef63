"""Base models with a LoRA adapter whose tensors can be set and read: the only place that knows PEFT's names."""

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsrd.core import lora as lora_view
from fedsrd.core.lora import FACTORS, LoraModule
from fedsrd.core.tensors import BaseDelta, Tensors, TensorTable, aligned
from fedsrd.errors import ModelError
from fedsrd.packages import Say, silent
from fedsrd.places import is_public
from fedsrd.text import foreign
from fedsrd.training.loading import empty_model, load_base
from fedsrd.training.options import BaseOptions
from fedsrd.training.quiet import quiet_libraries

_PEFT_PREFIX = "base_model.model."


def lora_config(rank: int, alpha: float, dropout: float, targets: str | Sequence[str]) -> Any:
    """PEFT's LoraConfig for a causal language model."""
    with quiet_libraries():
        from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def tensor_table(model_id: str, lora: Any, revision: str | None = None, say: Say = silent) -> TensorTable:
    """The tensors of a model's adapter, from its config alone: no weights are read (meta device).

    Args:
        model_id: a Hugging Face id, a folder, or an embedded model.
        lora: as `lora_config` makes it.
        revision: the hub's revision, if any.
        say: told what takes long.

    Raises:
        ModelError: the model cannot be found, is no causal language model, has no layer to adapt, or has one that is
            smaller than the rank.
    """
    return adapted_table(empty_model(model_id, revision, say), lora, model_id)


def adapted_table(model: Any, lora: Any, model_id: str) -> TensorTable:
    """The modules that `lora` adapts in an empty model. Raises ModelError as `tensor_table`."""
    # Of rank 1, whatever the rank is: PEFT makes factors of its size, and an absurd one must not be made.
    one = copy.copy(lora)
    one.r = 1
    modules = tuple(module._replace(rank=lora.r) for module in _modules(_adapt(model, one, model_id, on_meta=True)))
    for module in modules:
        if module.rank > min(module.out_features, module.in_features):
            raise ModelError(
                f"lora.rank = {module.rank}: larger than layer {module.name} "
                f"({module.out_features} x {module.in_features}); choose at most "
                f"{min(min(m.out_features, m.in_features) for m in modules)}"
            )
    return lora_view.table_of(modules)


class AdaptedModel:
    """A base model with its adapter and tokenizer, on one device. Trained tensors go in and come out as float32, on the
    CPU.

    Attributes:
        model: the PEFT model.
        tokenizer: the base model's tokenizer.
        device: where it computes.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self._layers: dict[str, Any] = dict(_lora_layers(model))
        self._original: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        model_id: str,
        lora: Any,
        options: BaseOptions | None = None,
        *,
        say: Say = silent,
    ) -> "AdaptedModel":
        """Loads base weights and attaches a fresh adapter.

        Raises:
            ModelError: as `tensor_table` and `loading.load_base`.
        """
        options = options or BaseOptions()
        model, tokenizer = load_base(model_id, options, say)
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return cls.attach(model, tokenizer, lora, model_id)

    @classmethod
    def attach(cls, model: Any, tokenizer: Any, lora: Any, model_id: str) -> "AdaptedModel":
        """Attaches a fresh adapter to a loaded model, where that is. Raises ModelError as `tensor_table`."""
        _contiguous_head(model)
        adapted = _adapt(model, lora, model_id, on_meta=False)
        for _, layer in _lora_layers(adapted):
            for pair in (layer.lora_A, layer.lora_B):
                pair["default"].float()
        for parameter in adapted.parameters():
            # Weights that lie in a mapped file begin wherever its header ends; training must not depend on that.
            if parameter.device.type == "cpu":
                parameter.data = aligned(parameter.data)
        return cls(adapted, tokenizer, model.device)

    def set_tensors(self, tensors: Tensors, base: BaseDelta | None = None) -> None:
        """Copies the tensors into the adapter, and sets the frozen weights to W0 + scale base, rounded to their dtype.

        Raises:
            ModelError: a weight that is to change is quantised.
        """
        self._set_base(base or {})
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._weight(name).copy_(tensor)

    def _set_base(self, base: BaseDelta) -> None:
        for name in self._original.keys() - base.keys():
            self._layers[name].get_base_layer().weight.data.copy_(self._original.pop(name))
        for name, change in base.items():
            layer = self._layers[name]
            weight = layer.get_base_layer().weight
            if not weight.is_floating_point():
                raise ModelError(f"module {name} is quantised: a method that changes the base model cannot change it")
            original = self._original.setdefault(name, weight.detach().clone())
            moved = change.to(weight.device) * layer.scaling["default"]
            weight.data.copy_(original.float() + (moved.T if layer.fan_in_fan_out else moved))

    @property
    def names(self) -> list[str]:
        """Of the adapter's tensors, in the order of the table."""
        return [lora_view.tensor_name(module, factor) for module in self._layers for factor in FACTORS]

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors, float32, on the CPU."""
        return {name: self._weight(name).detach().to("cpu", torch.float32, copy=True) for name in self.names}

    def parameters(self, trained: Sequence[str]) -> dict[str, Tensor]:
        """The adapter's parameters that train, by name; the others are frozen from now on."""
        wanted = set(trained)
        found = {name: self._weight(name) for name in self.names}
        for name, weight in found.items():
            weight.requires_grad_(name in wanted)
        return {name: weight for name, weight in found.items() if name in wanted}

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped at random in training, by the adapter or by the base model."""
        named = ("attention_dropout", "attn_pdrop")
        inside = any(getattr(self.model.config, name, 0) for name in named)
        return inside or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())

    @contextlib.contextmanager
    def in_lanes(self, stacked: Mapping[str, Tensor], lanes: int) -> Iterator[None]:
        """Inside, the l-th part of every batch is computed with the l-th of the stacked tensors, not with the
        adapter's own.

        Args:
            stacked: by name of the adapter's tensors, (lanes, *shape) float32, on the device.
            lanes: how many equal parts a batch has.
        """
        layers = list(self._layers.items())
        for name, layer in layers:
            factors = {factor: stacked[lora_view.tensor_name(name, factor)] for factor in FACTORS}
            layer.forward = _lane_forward(name, layer, factors["A"], factors["B"], lanes)
        try:
            yield
        finally:
            for _, layer in layers:
                # The class's own shows again.
                del layer.forward

    def _weight(self, name: str) -> Tensor:
        module, factor = lora_view.split(name)
        layer = self._layers[module]
        weight: Tensor = (layer.lora_A if factor == "A" else layer.lora_B)["default"].weight
        return weight


def adapter_config(lora: Any, model_id: str, revision: str | None, ranks: Mapping[str, int] | None = None) -> str:
    """PEFT's adapter_config.json for `lora` on a base model, as text.

    It names the base model only where that is public (`places.is_public`): the folder is made to be given away, and a
    path says nothing to others but how somebody's disk looks. PEFT needs no name to put an adapter on a given model.

    Args:
        lora: as `lora_config` makes it.
        model_id: the base model.
        revision: the hub's revision, if any.
        ranks: modules whose rank is another; their scale stays the adapter's.
    """
    found = lora.to_dict()
    if ranks:
        scale = lora.lora_alpha / lora.r
        found.update(rank_pattern=dict(ranks), alpha_pattern={name: rank * scale for name, rank in ranks.items()})
    public = is_public(model_id, "model")
    found.update(
        base_model_name_or_path=model_id if public else None,
        revision=revision if public else None,
        inference_mode=True,
    )
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in found.items()}
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


def adapter_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under the names that PEFT's adapter_model.safetensors uses."""
    return {f"{_PEFT_PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}


def merged_tensors(adapter: Tensors, base: BaseDelta) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The whole change of the weights, base + B A, as an adapter that PEFT loads: its tensors and each module's rank.

    A change that has run through many rounds has full rank, so one factor is the change itself and the other the
    identity: exact, and as large as the layers themselves (`adapter_config` takes the ranks).
    """
    tensors, ranks = {}, {}
    for name, pair in lora_view.pairs_of(adapter).items():
        whole = pair.B @ pair.A
        if name in base:
            whole += base[name]
        rows, columns = whole.shape
        left, right = (whole, torch.eye(columns)) if columns <= rows else (torch.eye(rows), whole)
        tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = left.contiguous()
        tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = right.contiguous()
        ranks[name] = min(rows, columns)
    return tensors, ranks


def tensors_of_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `adapter_tensors`, module by module, B before A.

    Raises:
        ModelError: a name is not one of a LoRA adapter, or a factor lacks its counterpart.
    """
    found = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    ordered: dict[str, Tensor] = {}
    for key in tensors:
        module, factor = lora_view.split(key.removeprefix(_PEFT_PREFIX))
        if factor is None:
            raise ModelError(f"{key!r} is no tensor of a LoRA adapter: expected ....lora_A.weight or ....lora_B.weight")
        for each in FACTORS:
            name = lora_view.tensor_name(module, each)
            if name not in found:
                raise ModelError(f"module {module} has only factor {factor}")
            ordered[name] = found[name]
    return ordered


def _adapt(model: Any, lora: Any, model_id: str, *, on_meta: bool) -> Any:
    from peft import get_peft_model

    try:
        with quiet_libraries():
            adapted = get_peft_model(model, lora, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        reason = foreign(str(error).strip().splitlines()[0])
        raise ModelError(f"model.id = {model_id!r}: no layer to adapt with lora.targets: {reason}") from None
    if next(_lora_layers(adapted), None) is None:
        raise ModelError(f"model.id = {model_id!r}: has no linear layer that lora.targets names, nothing to adapt")
    return adapted


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and len(module.lora_A):
            yield name.removeprefix(_PEFT_PREFIX), module


def _modules(model: Any) -> Iterator[LoraModule]:
    for name, layer in _lora_layers(model):
        rank, in_features = layer.lora_A["default"].weight.shape
        yield LoraModule(name, layer.lora_B["default"].weight.shape[0], in_features, rank)


def _lane_forward(name: str, layer: Any, A: Tensor, B: Tensor, lanes: int) -> Any:
    """The forward of a LoRA layer whose batch is in lanes; as PEFT's, it computes the adapter's part in float32.

    Args:
        name: of the layer.
        layer: PEFT's.
        A: (lanes, rank, in) float32.
        B: (lanes, out, rank) float32.
        lanes: how many.
    """
    scale = layer.scaling["default"]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[0] % lanes:
            # An expert of a mixture, say, which sees some tokens only.
            raise ModelError(
                f"layer {name} is given {x.shape[0]} rows, no multiple of the {lanes} clients that train together: "
                "this model needs training.clients_at_once = 1"
            )
        base = layer.base_layer(x, *args, **kwargs)
        low = torch.bmm(x.to(A.dtype).reshape(lanes, -1, x.shape[-1]), A.mT) * scale
        found: Tensor = (base + torch.bmm(low, B.mT).view(base.shape)).to(base.dtype)
        return found

    return forward


def _contiguous_head(model: Any) -> None:
    # Asked for the last positions only, transformers hands a strided slice to the output layer, and torch then copies
    # the whole vocabulary matrix once per sequence (measured: 0.9 of 2.4 s of a training step on SmolLM2-135M).
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))

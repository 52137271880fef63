"""The linear layers of the commonest decoders, from their config.json alone, without a model library.

transformers and PEFT say the same of every model, and take ten seconds to be imported; these families are laid out
alike. Whatever is not plainly one of them is left to those libraries (`architecture`), and the tests hold both against
each other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA, MISTRAL, QWEN2, QWEN3 = "llama", "mistral", "qwen2", "qwen3"
FAMILIES = {
    LLAMA: "LlamaForCausalLM",
    MISTRAL: "MistralForCausalLM",
    QWEN2: "Qwen2ForCausalLM",
    QWEN3: "Qwen3ForCausalLM",
}
"""Their `model_type`, and the class of the whole model."""
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MOST = 1 << 32
_FOREIGN = ("quantization_config", "auto_map", "text_config")
"""Keys of a config that is not plain."""
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layout:
    """What a plan needs of a model.

    Attributes:
        modules: (out_features, in_features) of every linear layer that "all-linear" adapts, by name, in order.
        parameters: of the whole model.
        layers: number of decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layer.
        key_value: width of keys, and of values.
        vocabulary: number of tokens.
    """

    modules: dict[str, tuple[int, int]]
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int


def read(folder: Path) -> Layout | None:
    """The layout of the model in a folder; None where its config.json is not plainly one of `FAMILIES`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return of_config(config) if isinstance(config, dict) else None


def of_config(config: Mapping[str, Any]) -> Layout | None:
    """The same of a config's keys."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES or config.get("architectures") != [FAMILIES[family]]:
        return None
    tied = config.get("tie_word_embeddings")
    # Defaults differ between families and versions: what decides on sizes must be said.
    if any(config.get(key) for key in _FOREIGN) or not isinstance(tied, bool):
        return None
    # A config that transformers would refuse is for transformers to refuse.
    ropes = (config.get("rope_parameters") or {}, config.get("rope_scaling") or {})
    if config.get("hidden_act", "silu") != "silu" or not all(isinstance(rope, dict) for rope in ropes):
        return None
    sizes = [config.get(key) for key in _SIZES]
    heads = config.get("num_attention_heads")
    groups = config.get("num_key_value_heads", heads if family == LLAMA else None)
    if not all(isinstance(size, int) and 0 < size < _MOST for size in [*sizes, groups]):
        return None
    hidden, intermediate, layers, heads, vocabulary = (int(size or 0) for size in sizes)
    head = config.get("head_dim") or (None if family == QWEN3 else hidden // heads)
    if not isinstance(head, int) or not 0 < head < _MOST or layers > 4096:
        return None
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    if not isinstance(attention, bool) or not isinstance(mlp, bool):
        return None
    query, key = heads * head, int(groups) * head
    shapes = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    shapes |= {"gate_proj": (intermediate, hidden), "up_proj": (intermediate, hidden)}
    shapes |= {"down_proj": (hidden, intermediate)}
    biased = {
        LLAMA: (*(_ATTENTION if attention else ()), *(_MLP if mlp else ())),
        MISTRAL: (),
        QWEN2: _ATTENTION[:3],
        QWEN3: _ATTENTION if attention else (),
    }[family]
    layer = sum(rows * columns for rows, columns in shapes.values()) + sum(shapes[name][0] for name in biased)
    layer += 2 * hidden + (2 * head if family == QWEN3 else 0)
    names = [f"self_attn.{name}" for name in _ATTENTION] + [f"mlp.{name}" for name in _MLP]
    modules = {
        f"model.layers.{place}.{name}": shapes[name.partition(".")[2]] for place in range(layers) for name in names
    }
    whole = vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden
    return Layout(modules, whole, layers, hidden, intermediate, key, vocabulary)


def adapted(layout: Layout, targets: str | list[str]) -> dict[str, tuple[int, int]]:
    """The modules that targets name: "all-linear", or names' ends as PEFT reads a list of them. None at all where one
    of them names no linear layer: what PEFT makes of it is for PEFT to say.
    """
    if isinstance(targets, str):
        return dict(layout.modules) if targets == "all-linear" else {}
    found: set[str] = set()
    for target in targets:
        named = {name for name in layout.modules if name == target or name.endswith(f".{target}")}
        if not named:
            return {}
        found |= named
    return {name: shape for name, shape in layout.modules.items() if name in found}

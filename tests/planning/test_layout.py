"""Layouts from a config alone against transformers and PEFT."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from fedsrd.core.lora import modules_of
from fedsrd.planning import layout
from fedsrd.planning.architecture import architecture
from fedsrd.training import loading, models

CONFIGS = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(sorted(layout.FAMILIES)),
        "hidden_size": st.sampled_from([32, 48]),
        "intermediate_size": st.integers(8, 80),
        "num_hidden_layers": st.integers(1, 3),
        "num_attention_heads": st.sampled_from([2, 4]),
        "num_key_value_heads": st.sampled_from([1, 2]),
        "vocab_size": st.integers(10, 50),
        "tie_word_embeddings": st.booleans(),
    },
    optional={
        "head_dim": st.sampled_from([8, 24]),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
    },
)
TARGETS = st.sampled_from(["all-linear", ["q_proj", "down_proj"], ["mlp.up_proj"], ["layers.0.self_attn.k_proj"]])


def by_the_libraries(folder, rank, targets):
    empty = loading.empty_model(str(folder))
    # PEFT adapts it in place.
    parameters = sum({id(p): p.numel() for p in empty.parameters()}.values())
    return models.adapted_table(empty, models.lora_config(rank, 2 * rank, 0.0, targets), "it"), parameters


@given(CONFIGS, TARGETS)
@settings(max_examples=25)
def test_it_says_what_transformers_and_peft_say(tmp_path_factory, config, targets):
    config = {**config, "architectures": [layout.FAMILIES[config["model_type"]]]}
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(config))
    found = layout.read(folder)
    if found is None:
        assert config["model_type"] == layout.QWEN3
        assert "head_dim" not in config
        return
    table, parameters = by_the_libraries(folder, 2, targets)
    whole = architecture(str(folder), 2, targets)
    assert whole.table == table
    assert modules_of(whole.table) == modules_of(table)
    assert whole.parameters == parameters
    # The other sizes, as the libraries' own config has them.
    its = AutoConfig.from_pretrained(folder)
    head = getattr(its, "head_dim", None) or its.hidden_size // its.num_attention_heads
    assert whole.key_value == its.num_key_value_heads * head
    assert (whole.layers, whole.hidden, whole.intermediate) == (
        its.num_hidden_layers,
        its.hidden_size,
        its.intermediate_size,
    )


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mamba"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
        {"tie_word_embeddings": None},
        {"quantization_config": {"bits": 4}},
        {"auto_map": {"AutoModelForCausalLM": "x.Y"}},
        {"hidden_size": "32"},
        {"hidden_size": 0},
        {"num_hidden_layers": 10**9},
        {"attention_bias": "yes"},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},  # how many groups has its own default
    ],
)
def test_what_is_not_plain_is_left_to_the_libraries(change):
    assert layout.of_config(LLAMA) is not None
    assert layout.of_config({**LLAMA, **change}) is None


def test_targets_that_name_no_linear_layer_are_left_to_the_libraries():
    found = layout.of_config(LLAMA)
    assert layout.adapted(found, ["q_proj", "lm_head"]) == {}
    assert layout.adapted(found, "some-pattern") == {}
    assert len(layout.adapted(found, "all-linear")) == 14


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", "\udc80"])
def test_a_damaged_config_is_none_of_them(tmp_path, text):
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    assert layout.read(tmp_path) is None

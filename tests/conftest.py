"""A tiny untrained model with a tokenizer of its own, made on the spot: fast tests need no download."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a Llama of 2 layers and width 32 (untrained, float32), pad token equal to end of text as SmolLM2's
    is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the sum of two and three is five", "name the colour of the sky"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_recipe(tiny_model, tmp_path) -> dict:
    """The tree of a recipe of two clients on the tiny model, with their data in files."""
    clients = []
    for name, offset in (("left", 1), ("right", 100)):
        rows = [{"instruction": f"add {i} and {offset}", "response": f"it is {i + offset}"} for i in range(12)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        clients.append({"name": name, "data": {"source": str(file)}})
    return {
        "name": "tiny",
        "rounds": 3,
        "model": {"id": str(tiny_model), "dtype": "float32", "device": "cpu"},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "training": {"steps": 2, "batch_size": 2, "accumulation": 2, "learning_rate": 1e-2, "max_length": 64},
        "method": {"name": "fedsrd"},
        "clients": clients,
        "evaluation": {"examples": 4, "sets": [{"name": "left", "data": clients[0]["data"]}]},
    }

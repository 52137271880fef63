"""A tiny untrained model with a tokenizer of its own, made on the spot."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def make(folder, kind="llama", **sizes):
    """Writes a model of 2 layers and width 32 (float32), pad token equal to end of text as SmolLM2's is.

    `kind` is transformers' model type; `sizes` change its config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fast = tokenizer()
    fast.save_pretrained(folder)
    config = AutoConfig.for_model(kind, vocab_size=len(fast), **{**SIZES, **sizes})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Some kinds' defaults lie beyond this small vocabulary.
        token = getattr(config, name)
        setattr(config, name, token if isinstance(token, int) and token < len(fast) else None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def tokenizer():
    """A byte-level tokenizer of 300 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the sum of two and three is five", "name the colour of the sky"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT
    return fast

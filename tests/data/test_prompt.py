"""Prompts and the cut to a length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.data.examples import Example
from fedsrd.data.prompt import encode, format_prompt
from fedsrd.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_styles(tokenizer):
    assert format_prompt("do it", "chat", tokenizer) == "<|im_start|>user\ndo it<|im_end|>\n<|im_start|>assistant\n"
    assert format_prompt("do it", "alpaca", tokenizer).endswith("### Instruction:\ndo it\n\n### Response:\n")
    assert format_prompt("do it", "plain", tokenizer) == "do it\n"


def test_a_tokenizer_without_a_chat_template(tokenizer):
    class Bare:
        chat_template = None

    with pytest.raises(DataError, match='use "alpaca" or "plain"'):
        format_prompt("do it", "chat", Bare())


@settings(deadline=None)
@given(instruction=st.text(max_size=120), response=st.text(min_size=1, max_size=120), length=st.integers(8, 200))
def test_lengths_ends_and_cuts(tokenizer, instruction, response, length):
    whole = encode(Example(instruction, response), "plain", tokenizer, 10_000)
    cut = encode(Example(instruction, response), "plain", tokenizer, length)
    assert whole.response[-1] == tokenizer.eos_token_id
    assert len(cut.prompt) + len(cut.response) <= length
    assert cut.response == whole.response[: len(cut.response)]
    assert cut.prompt == whole.prompt[len(whole.prompt) - len(cut.prompt) :]
    if len(whole.prompt) + len(whole.response) <= length:
        assert cut == whole
    if len(cut.response) < len(whole.response):
        assert len(cut.response) >= length // 2
    assert tokenizer.decode(whole.response[:-1]) == response


def test_too_short_a_length(tokenizer):
    with pytest.raises(ValueError, match="expected 8 or more"):
        encode(Example("a", "b"), "plain", tokenizer, 7)

"""Prompts and the cut to a length."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.data.examples import Example
from fedsrd.data.prompt import encode, format_prompt
from fedsrd.data.rows import Form
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


MARKED = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that marks what the assistant says, as TRL asks of a template for its loss on the assistant's turns alone."""
SAID = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20).filter(str.strip)


@settings(deadline=None, max_examples=50)
@given(
    system=st.none() | SAID,
    said=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4),
    tools=st.sampled_from([None, [{"type": "function", "function": {"name": "weather"}}]]),
)
def test_answers_of_a_conversation_are_the_tokens_that_the_templates_own_marks_say(tokenizer, system, said, tools):
    turns = [] if system is None else [{"role": "system", "content": system}]
    for asked, answered in said:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = MARKED
    marked.eos_token = "<|im_end|>"
    whole = marked.apply_chat_template(turns, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    ids, wanted = list(whole["input_ids"]), list(whole["assistant_masks"])
    trained = [0] * len(ids)
    examples = Form({"messages": "m"}).examples({"m": turns, "tools": tools})
    assert len(examples) == len(said)
    for example in examples:
        encoded = encode(example, "chat", marked, 10_000)
        together = [*encoded.prompt, *encoded.response]
        assert together == ids[: len(together)]
        for place in range(len(encoded.prompt), len(together)):
            trained[place] = 1
    assert trained == wanted


def test_a_template_that_takes_no_system_turn_is_told(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    example = Example("system: a\n\nuser: b", "c", turns=(("system", "a"), ("user", "b")))
    with pytest.raises(DataError, match=r"refuses a conversation \(system, user\): no system role"):
        format_prompt(example, "chat", strict)
    assert format_prompt(example, "plain", strict) == "system: a\n\nuser: b\n"


def test_trls_trainer_makes_the_same_tokens_and_labels(tiny_model, tokenizer, tmp_path):
    """Of conversations with its loss on the assistant's turns, and of a question with its answer."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM

    disable_progress_bars()
    marked = copy.deepcopy(tokenizer)
    marked.chat_template, marked.eos_token = MARKED, "<|im_end|>"
    turns = [{"role": "system", "content": "be kind"}]
    for asked, answered in (("hi", "hello there"), ("and now", "bye"), ("so", "so it is")):
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    how = {"output_dir": str(tmp_path), "max_length": None, "report_to": [], "use_cpu": True, "bf16": False}

    def theirs(row, **more):
        trainer = trl.SFTTrainer(
            model, args=trl.SFTConfig(**how, **more), train_dataset=Dataset.from_list([row]), processing_class=marked
        )
        batch = trainer.data_collator([trainer.train_dataset[0]])
        return batch["input_ids"][0].tolist(), [int(label != -100) for label in batch["labels"][0].tolist()]

    ids, wanted = theirs({"messages": turns}, assistant_only_loss=True)
    trained = [0] * len(ids)
    for example in Form({"messages": "m"}).examples({"m": turns}):
        encoded = encode(example, "chat", marked, 10_000)
        together = [*encoded.prompt, *encoded.response]
        assert together == ids[: len(together)]
        trained[len(encoded.prompt) : len(together)] = [1] * len(encoded.response)
    assert trained == wanted
    ids, wanted = theirs({"prompt": turns[1:2], "completion": turns[2:3]})
    encoded = encode(Example("hi", "hello there"), "chat", marked, 10_000)
    assert ids == [*encoded.prompt, *encoded.response]
    assert wanted == [0] * len(encoded.prompt) + [1] * len(encoded.response)

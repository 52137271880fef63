"""How an example becomes tokens: prompt styles, and the cut to a length."""

from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from fedsrd.data.examples import Example
from fedsrd.errors import DataError
from fedsrd.text import foreign

Style = Literal["chat", "alpaca", "plain"]

# The template of Stanford Alpaca (Taori et al., 2023), which the paper's experiments use.
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as token ids. Prompt and response stand apart, so that a loss can count the response by length.

    Masking must go by length, never by the padding's id: SmolLM2 and others pad with their end-of-text token, and who
    masks by id hides the end that the model should learn.
    """

    prompt: list[int]
    response: list[int]


def style_of(tokenizer: Any) -> Style:
    """The style where nobody has said one: the tokenizer's chat template, or Alpaca's where it has none."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "alpaca"


def format_prompt(asked: str | Example, style: Style, tokenizer: Any) -> str:
    """The text before the response.

    Args:
        asked: an instruction, or an example whose response is to come. Of a conversation the chat template writes every
            turn, and the tools; other styles have it as one text ("user: ...").
        style: "chat" for the tokenizer's own chat template, "alpaca", or "plain" (the instruction and a new line).
        tokenizer: a transformers tokenizer.

    Raises:
        DataError: style "chat" and the tokenizer has no chat template, or it refuses the conversation.
    """
    example = Example(asked, "") if isinstance(asked, str) else asked
    instruction = example.instruction
    if style == "alpaca":
        return _ALPACA.format(instruction=instruction)
    if style == "plain":
        return instruction + "\n"
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            'training.prompt = "chat": this model\'s tokenizer has no chat template; use "alpaca" or "plain"'
        )
    turns = [{"role": role, "content": text} for role, text in example.turns or (("user", instruction),)]
    more = {"tools": list(example.tools)} if example.tools else {}
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **more))
    except (TemplateError, TypeError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the model's chat template refuses a conversation ({roles}): {foreign(error)}; leave such rows out, or "
            'set training.prompt to "alpaca" or "plain"'
        ) from None


def prompt_ids(asked: str | Example, style: Style, tokenizer: Any) -> list[int]:
    """Token ids of the text before the response, whole. Arguments and errors as `format_prompt`."""
    return _ids(format_prompt(asked, style, tokenizer), tokenizer)


def encode(example: Example, style: Style, tokenizer: Any, max_length: int) -> Encoded:
    """Token ids of prompt and response, together at most `max_length`.

    The response ends with the tokenizer's end-of-text token. What is too long is cut: the prompt on its left, down to
    half of the length; then the response on its right, and a response that was cut does not end, so that the model
    never learns to stop in the middle.

    Raises:
        ValueError: `max_length` is under 8.
        DataError: as `format_prompt`.
    """
    if max_length < 8:
        raise ValueError(f"max_length {max_length}: expected 8 or more tokens")
    prompt = prompt_ids(example, style, tokenizer)
    response = [*_ids(example.response, tokenizer), tokenizer.eos_token_id]
    room = max(max_length - len(prompt), max_length // 2)
    response = response[:room]
    return Encoded(prompt[max(len(prompt) + len(response) - max_length, 0) :], response)


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])

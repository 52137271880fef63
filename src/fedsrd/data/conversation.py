"""Conversations as people have them: OpenAI's "messages" and ShareGPT's "conversations", one example an answer."""

from collections.abc import Mapping
from typing import Any

from fedsrd.data.cells import UnfitError, kind, text
from fedsrd.data.examples import Example

COLUMNS = ("messages", "conversations")
"""Columns that are taken for conversations where a recipe names none."""
TOOLS = "tools"
"""The column beside them with what the model may call, which goes to the chat template as it is."""
_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def examples(turns: Any, tools: Any, column: str) -> list[Example]:
    """One example for each turn of the assistant that answers something, with all turns before it as its prompt.

    Args:
        turns: a list of {"role", "content"}, or of ShareGPT's {"from", "value"}.
        tools: a list for the chat template, or None.
        column: where they are from, for messages.

    Raises:
        UnfitError: they are no conversation.
    """
    if not isinstance(turns, list):
        raise UnfitError(f"{column!r} is {kind(turns)}; expected a list of turns")
    said = [_turn(turn, f"{column}.{place}", place, column) for place, turn in enumerate(turns)]
    if tools is not None and not isinstance(tools, list):
        raise UnfitError(f"{TOOLS!r} is {kind(tools)}; expected a list, or nothing")
    places = [place for place, (role, _) in enumerate(said) if place and role == "assistant"]
    if not places:
        raise UnfitError(f"{column!r} has no turn of an assistant that answers another")
    return [_example(said[:place], said[place][1], tools) for place in places]


def _turn(turn: Any, where: str, place: int, column: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise UnfitError(f"{column!r}, turn {place}, is {kind(turn)}; expected role and content")
    names = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    given = text(turn.get(names[0]), f"{where}.{names[0]}")
    role = _ROLES.get(given.strip().lower())
    if role is None:
        raise UnfitError(f"{where}.{names[0]!r} is no role that is known; expected {', '.join(_ROLES)}")
    if turn.get("tool_calls"):
        raise UnfitError(
            f"{where} calls tools (tool_calls); templates write these in many ways, so expected the call as the "
            "turn's text, as the model is to write it"
        )
    return role, text(turn.get(names[1]), f"{where}.{names[1]}")


def _example(before: list[tuple[str, str]], response: str, tools: list[Any] | None) -> Example:
    if [role for role, _ in before] == ["user"]:
        return Example(before[0][1], response, tools=tuple(tools or ()))
    whole = "\n\n".join(f"{role}: {content}" for role, content in before)
    return Example(whole, response, turns=tuple(before), tools=tuple(tools or ()))

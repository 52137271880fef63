"""How a row becomes an example: which columns, which template, which turn of a conversation. Never by guessing."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedsrd.data import cells, conversation
from fedsrd.data.examples import Example
from fedsrd.errors import DataError

ROLES = ("instruction", "input", "response", "messages")


@dataclass(frozen=True)
class Form:
    """What a data set's rows look like.

    Attributes:
        columns: which columns are "instruction", "input" (appended to the instruction, may be blank) and "response"; or
            "messages" (a conversation: every turn of the assistant is a response). By default their own names.
        template: the instruction as text with columns in braces, such as "{question} {context}".
    """

    columns: Mapping[str, str]
    template: str | None = None

    def check(self, label: str) -> None:
        """Raises DataError, naming `label`, for a role that is unknown, two that exclude each other, or a template that
        is more than column names in braces.
        """
        for role in self.columns:
            if role not in ROLES:
                raise DataError(f"{label}: columns.{role}: expected one of {', '.join(ROLES)}")
        if "messages" in self.columns and (len(self.columns) > 1 or self.template is not None):
            raise DataError(f"{label}: columns.messages says all: leave other columns and the template out")
        if self.template is not None:
            for role in ("instruction", "input"):
                if role in self.columns:
                    raise DataError(f"{label}: columns.{role} beside a template; name the column in the template")
            try:
                parts = self._parts
            except ValueError as error:
                raise DataError(f"{label}: template {self.template!r}: {error}") from None
            # The plainest form only: nothing that reaches into a value or computes on it.
            if not any(field for _, field in parts) or not all(f is None or f.isidentifier() for _, f in parts):
                raise DataError(
                    f'{label}: template {self.template!r}: expected column names in braces, such as "{{question}}"'
                )

    @property
    def needed(self) -> list[str]:
        """Columns that every row must have."""
        if "messages" in self.columns:
            return [self.columns["messages"]]
        if self.template is None:
            asked = [self._column("instruction")]
        else:
            asked = [field for _, field in self._parts if field is not None]
        also = [self.columns["input"]] if "input" in self.columns else []
        return list(dict.fromkeys([*asked, self._column("response"), *also]))

    @property
    def optional(self) -> list[str]:
        """Columns that are taken where they are there."""
        if "messages" in self.columns:
            return [conversation.TOOLS]
        return [] if self.template is not None else [*self._more]

    def fitting(self, existing: Sequence[str]) -> "Form":
        """The form of a data set with these columns: where nothing was said of them, and there is a column of
        conversations and none of instructions, that one; else this form.
        """
        found = [name for name in conversation.COLUMNS if name in existing]
        if self.columns or self.template is not None or "instruction" in existing or len(found) != 1:
            return self
        return Form({"messages": found[0]})

    def examples(self, row: Mapping[str, Any]) -> list[Example]:
        """A row that has the needed columns as an example, or a conversation as one for each of its answers.

        Raises:
            UnfitError: instruction or response is null, blank or no text, or the conversation has no answer.
        """
        if "messages" not in self.columns:
            return [self._example(row)]
        column, tools = self.columns["messages"], row.get(conversation.TOOLS)
        return conversation.examples(row[column], tools, column)

    def _example(self, row: Mapping[str, Any]) -> Example:
        response = cells.text(row[self._column("response")], self._column("response"))
        if self.template is not None:
            whole = "".join(text + ("" if name is None else _filled(row[name])) for text, name in self._parts)
            return Example(cells.text(whole, "the filled template"), response)
        instruction = cells.text(row[self._column("instruction")], self._column("instruction"))
        more = next((row.get(column) for column in self._more), None)
        if more is None or (isinstance(more, str) and not more.strip()):
            return Example(instruction, response)
        return Example(f"{instruction}\n\n{cells.text(more, self._column('input'))}", response)

    @property
    def _more(self) -> tuple[str, ...]:
        """The column that is put below the instruction, where there is one: not one that has another role already."""
        column = self._column("input")
        return () if "input" not in self.columns and column in self.columns.values() else (column,)

    def _column(self, role: str) -> str:
        return self.columns.get(role, role)

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """The template as texts, each with the column that follows it; read once, not for every row. Raises ValueError
        where a brace has no other half.
        """
        parts = string.Formatter().parse(self.template or "")
        return [(text, f"{field}!:" if spec or conversion else field) for text, field, spec, conversion in parts]


def _filled(value: Any) -> str:
    """A value in a template: a null is empty; numbers, lists and tables are written as Python writes them."""
    return "" if value is None else str(value)

"""Talking to what was trained: the same questions to the base model and to the adapter on it, one model in memory."""

import contextlib
from collections.abc import Sequence

import torch

from fedsrd.data.examples import Example
from fedsrd.data.prompt import Style, prompt_ids
from fedsrd.evaluation import exact
from fedsrd.evaluation.model_loader import LoadedModel

BASE, ADAPTED = "base model", "adapter"


class Chat:
    """A conversation with a model, and with the same model without its adapter; each goes on from its own answers.

    Args:
        loaded: the model; with an adapter if `names` says so.
        style: of prompts. Only "chat" has a history; the others put every question alone.
        names: who answers, in order: BASE, ADAPTED or both.
        system: what a system's turn says first; "" for none.
        most: new tokens of an answer.
        temperature: 0 for the likeliest token each time.
        seed: of the drawing, where the temperature is more.

    Attributes:
        names: who answers.
        turns: what was said so far, to each of them: pairs of role and text.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        style: Style,
        names: Sequence[str],
        *,
        system: str = "",
        most: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.names = list(names)
        self._loaded, self._style, self._most = loaded, style, most
        self._temperature, self._seed = temperature, seed
        self._first: tuple[tuple[str, str], ...] = (("system", system),) if system else ()
        self._asked = 0
        self.reset()

    def reset(self) -> None:
        """Forgets what was said."""
        self.turns = dict.fromkeys(self.names, self._first)

    def ask(self, question: str) -> dict[str, str]:
        """Everybody's answer, by name. Raises DataError where the chat template refuses it."""
        self._asked += 1
        answers = {name: self._answer(name, question) for name in self.names}
        for name, answer in answers.items():
            self.turns[name] = (*self.turns[name], ("user", question), ("assistant", answer))
        return answers

    def _answer(self, name: str, question: str) -> str:
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        history = self.turns[name] if self._style == "chat" else ()
        ids = prompt_ids(Example(question, "", turns=(*history, ("user", question))), self._style, tokenizer)
        bare = (
            model.disable_adapter() if name == BASE and hasattr(model, "disable_adapter") else contextlib.nullcontext()
        )
        devices = [self._loaded.device] if self._loaded.device.type == "cuda" else []
        with bare, torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed + self._asked)
            return exact.generate(self._loaded, [ids], self._most, 1, self._temperature)[0].strip()

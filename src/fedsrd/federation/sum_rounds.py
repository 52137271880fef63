"""Rounds whose updates are integers that the server adds up: in the clear here, masked in `secure_rounds`."""

import dataclasses
import time

import numpy as np

from fedsrd.errors import PayloadError
from fedsrd.federation import sums
from fedsrd.federation.messages import Failure, Update
from fedsrd.federation.rounds import Answers, Rounds
from fedsrd.federation.server import Closed
from fedsrd.federation.sums import Form
from fedsrd.privacy import packed
from fedsrd.privacy.packed import Words


class SumRounds(Rounds):
    """`Rounds` of integers in the clear: the sum that secure aggregation must come to."""

    def _attempt(self, attempt: int, answers: Answers) -> Closed:
        # A vector's width follows from how many are asked, so each attempt asks all it needs.
        answers.clear()
        tasks = self.tasks(attempt, {})
        form = self.server.form(len(tasks))
        total, seconds = form.layout.zeros(), 0.0
        for answer in self.engine.ask(tasks):
            began = time.perf_counter()
            answers[answer.client] = self._taken(answer, form, total)
            seconds += time.perf_counter() - began
        found = self.sorted(answers)
        if len(found) < self.server.minimum:
            raise self.server.too_few(len(found), failures(answers))
        return self.server.close_sum(found, failures(answers), total, form, {"decode": seconds})

    def sorted(self, answers: Answers) -> list[Update]:
        """The updates, in the recipe's order; who has lost its replica is noted."""
        self.take_losses(answers)
        named = (answers[name] for name in self.server.in_order(answers))
        return [answer for answer in named if isinstance(answer, Update)]

    def checked(self, answer: Update, form: Form) -> tuple[Update, Words]:
        """An update without its payload, whose bytes are counted, and its words. Raises PayloadError."""
        number, version = self.server.version + 1, self.server.version
        update = answer.checked()
        words = sums.read_words(answer.payload, form, number, version)
        self._up[answer.client] = self._up.get(answer.client, 0) + len(answer.payload)
        return dataclasses.replace(update, payload=b""), words

    def _taken(self, answer: Update | Failure, form: Form, total: Words) -> Update | Failure:
        """The answer, once it is in the total; or why it is not."""
        if isinstance(answer, Failure):
            return answer
        try:
            update, words = self.checked(answer, form)
            most = int(np.abs(packed.unpack(words, form.layout).astype(np.int64)).max())
            if most > form.options.levels:
                raise PayloadError(f"an integer of size {most}; expected at most {form.options.levels}")
        except PayloadError as error:
            return Failure(answer.client, self.server.version + 1, str(error))
        packed.add_(total, words, form.layout)
        return update


def failures(answers: Answers) -> list[Failure]:
    """Who sent no usable update, and why."""
    return [answer for answer in answers.values() if isinstance(answer, Failure)]

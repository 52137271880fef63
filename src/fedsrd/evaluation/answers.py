"""Answers kept on the disk as they come, so that an evaluation that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsrd.errors import EvaluationError
from fedsrd.files import append_line


class Answers:
    """A file of JSON lines, one a chunk of requests: {"key": ..., "answers": [...]}; an incomplete last line is left
    out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, list[Any]] = {}
        if path.is_file():
            # As bytes: a line may have been cut within a character.
            for line in path.read_bytes().split(b"\n"):
                try:
                    entry = json.loads(line)
                    self._kept[entry["key"]] = list(entry["answers"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue

    def get(self, key: str, count: int) -> list[Any] | None:
        """The answers to a chunk, if they are all there."""
        found = self._kept.get(key)
        return found if found is not None and len(found) == count else None

    def put(self, key: str, answers: Sequence[Any]) -> None:
        """Keeps a chunk's answers, at once.

        Raises:
            EvaluationError: the file cannot be written, or is a link, which is not followed.
        """
        self._kept[key] = list(answers)
        line = json.dumps({"key": key, "answers": list(answers)}, ensure_ascii=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, line)
        except OSError as error:
            raise EvaluationError(
                f"{self.path} cannot be written: {error.strerror or error}; what is done so far is kept"
            ) from None


def in_chunks(
    requests: Sequence[Any],
    arguments: Callable[[Any], Iterable[Any]],
    ask: Callable[[list[Any]], Sequence[Any]],
    answers: Answers,
    size: int,
    on_done: Callable[[int, int], None],
) -> list[Any]:
    """Answers all requests, chunk by chunk, taking those that are kept.

    Chunks are cut from all requests, longest first, whatever is kept: an evaluation that goes on pads its batches as
    one that never stopped, and so gets the same bits.

    Args:
        requests: any.
        arguments: of one request; what makes it that request.
        ask: answers a list of requests, in order.
        answers: where answers are kept.
        size: requests a chunk.
        on_done: told how many of how many are answered.
    """
    texts = [json.dumps(list(arguments(request)), sort_keys=True, default=repr) for request in requests]
    order = sorted(range(len(requests)), key=lambda place: (-len(texts[place]), texts[place]))
    found: list[Any] = [None] * len(requests)
    done = 0
    for at in range(0, len(order), size):
        places = order[at : at + size]
        key = hashlib.sha256("\n".join(texts[place] for place in places).encode()).hexdigest()
        part = answers.get(key, len(places))
        if part is None:
            part = list(ask([requests[place] for place in places]))
            answers.put(key, part)
        for place, answer in zip(places, part, strict=True):
            found[place] = answer
        done += len(places)
        on_done(done, len(requests))
    return found


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of lm-eval, one a task, as one of them all: tables are merged, the last of anything else stays."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(key), Mapping)
            whole[key] = {**whole[key], **value} if both else value
    return whole

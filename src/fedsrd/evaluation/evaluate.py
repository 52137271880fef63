"""Evaluates subjects on a suite: part by part, each part's result on the disk when it is done.

A folder OUT gets SUBJECT/eval.json (lm-eval's format), SUBJECT/parts/ and SUBJECT/answers/ (what is done, for going on
after a stop), scores.json and scores.md (all subjects). Base models' results are kept in the cache for the next time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import cache, scores, suites
from fedsrd.evaluation.answers import merged
from fedsrd.evaluation.local_files import Files
from fedsrd.evaluation.model_loader import ModelLoader
from fedsrd.evaluation.runners import EmbeddedRunner, HarnessRunner, Runner
from fedsrd.evaluation.scores import Score
from fedsrd.evaluation.subjects import Subject
from fedsrd.evaluation.suites import SuiteName
from fedsrd.files import is_temporary, write_atomically


class Observer(Protocol):
    """Who is told how an evaluation goes."""

    def say(self, text: str) -> None:
        """Something that takes a while, or that the user should know."""

    def activity(self, subject: str, part: str, done: int, total: int) -> None:
        """A subject's part stands at `done` of `total` questions."""


@dataclass(frozen=True)
class Request:
    """What is measured.

    Attributes:
        suite: which suite.
        tasks: names of benchmarks, instead of the suite's.
        limit: most examples of each part.
        files: local questions, by lm-eval's task.
        run_code: run programs that the model writes.
        chat: put lm-eval's prompts into the chat template.
        prompt: style of the embedded suite's prompts; None for the run's own.
        max_length: tokens of the embedded suite's examples.
        batch_size: sequences a batch.
    """

    suite: SuiteName = "embedded"
    tasks: tuple[str, ...] | None = None
    limit: int | None = None
    files: Mapping[str, Files] = field(default_factory=dict)
    run_code: bool = False
    chat: bool = False
    prompt: str | None = None
    max_length: int = 160
    batch_size: int = 8

    def runner(self, observer: Observer) -> Runner:
        """The suite, ready to run. Raises EvaluationError as `suites.chosen` and `harness.load_tasks`."""
        benchmarks = suites.chosen(self.suite, None if self.tasks is None else list(self.tasks))
        if not benchmarks:
            return EmbeddedRunner(self.prompt, self.limit, self.max_length, self.batch_size, observer.say)
        observer.say("Loading questions")
        return HarnessRunner(benchmarks, self.files, self.run_code, self.limit, self.chat, self.batch_size)

    def record(self) -> dict[str, Any]:
        """What two evaluations must share for one to go on with the other's parts."""
        return {
            "suite": self.suite,
            "tasks": None if self.tasks is None else list(self.tasks),
            "limit": self.limit,
            "files": {task: files.digest() for task, files in sorted(self.files.items())},
            "chat": self.chat,
            "prompt": self.prompt,
            "max_length": self.max_length,
        }


def run(
    request: Request, subjects: Sequence[Subject], out: Path, loader: ModelLoader, observer: Observer
) -> dict[str, list[Score]]:
    """Evaluates all subjects and writes the results; goes on where an earlier call with the same request stopped.

    Args:
        request: what is measured.
        subjects: what is evaluated.
        out: folder of the results.
        loader: loads the subjects.
        observer: told how it goes.

    Returns:
        The scores of each subject, by name.

    Raises:
        EvaluationError: `out` holds another evaluation, or as `Request.runner`.
        ModelError, DataError, PackageError: a model or data cannot be loaded.
    """
    record = request.record()
    whole = {**record, "subjects": {subject.name: _where(subject) for subject in subjects}}
    _check(out, whole)
    runner = request.runner(observer)
    # A model that is not there must show before another is evaluated for hours, and before anything is written.
    identities = {subject.name: loader.identity(subject) for subject in subjects}
    cache.write(out / "request.json", whole)
    found = {}
    for subject in subjects:
        one = _One(subject, identities[subject.name], runner, loader, observer, out / _folder(subject.name))
        results = merged(one.part(part) for part in runner.parts)
        config = {"batch_size": request.batch_size, "limit": request.limit, "fedsrd": record}
        cache.write(one.folder / "eval.json", results | {"config": {**one.config(), **config}})
        found[subject.name] = runner.scores(results["results"])
    heads, lines = scores.table(found)
    cache.write(out / "scores.json", scores.as_json(found))
    write_atomically(out / "scores.md", scores.markdown(heads, lines).encode())
    return found


@dataclass
class _One:
    """One subject; its weights are read when the first part is not there yet."""

    subject: Subject
    identity: str
    runner: Runner
    loader: ModelLoader
    observer: Observer
    folder: Path
    _run: Any = None

    def part(self, name: str) -> Any:
        """One part's result: from the folder, for a base model from the cache, or measured now."""
        dtype, device = self.loader.dtype(self.subject), self.loader.device.type
        key = cache.key(
            self.identity, self.subject.prompt, self.subject.quantization, dtype, device, self.runner.facts(name)
        )
        file = self.folder / "parts" / f"{name}.json"
        stored = cache.read(file) or {}
        if stored.get("key") != key:
            make = partial(self._measure, name)
            stored = {"key": key, "result": make() if self.subject.adapter else cache.kept(key, make)}
            cache.write(file, stored)
        return stored["result"]

    def _measure(self, name: str) -> dict[str, Any]:
        if self._run is None:
            self._run = self.runner.start(self.loader.load(self.subject), self.subject.prompt)
        found: dict[str, Any] = self._run(
            name, self.folder / "answers" / f"{name}.jsonl", partial(self.observer.activity, self.subject.name, name)
        )
        return found

    def config(self) -> dict[str, Any]:
        """What lm-eval's results say of the model."""
        adapter = str(self.subject.adapter) if self.subject.adapter else None
        return {
            "model": self.subject.model,
            "model_args": {"revision": self.subject.revision, "peft": adapter},
            "model_dtype": self.loader.dtype(self.subject),
            "device": str(self.loader.device),
        }


def _check(out: Path, whole: Mapping[str, Any]) -> None:
    """Raises EvaluationError if the folder is another evaluation's, or something else's."""
    file = out / "request.json"
    if file.is_file():
        stored = cache.read(file) or {}
        keys = [key for key in whole if stored.get(key) != whole[key]]
        if keys:
            raise EvaluationError(
                f"{out} holds another evaluation (it differs in {', '.join(keys)}); choose another --out, or repeat "
                "that one's command to go on with it"
            )
    elif out.exists() and (not out.is_dir() or not all(is_temporary(file.name) for file in out.iterdir())):
        raise EvaluationError(f"{out} is not an empty folder; choose another --out")


def _where(subject: Subject) -> list[str | None]:
    return [subject.model, subject.revision, str(subject.adapter) if subject.adapter else None]


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)

"""How a suite is run, part by part: the embedded one with our own measurements, the paper's with lm-eval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedsrd.data.prompt import style_of
from fedsrd.evaluation import embedded, harness
from fedsrd.evaluation.answers import Answers
from fedsrd.evaluation.local_files import Files
from fedsrd.evaluation.model_loader import LoadedModel
from fedsrd.evaluation.scores import Score
from fedsrd.evaluation.suites import Benchmark
from fedsrd.packages import Say

Results = Mapping[str, Mapping[str, Any]]
"""lm-eval's "results": a row a part."""


class Runner(Protocol):
    """One suite, ready to run."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of its parts, in order."""

    def facts(self, part: str) -> object:
        """What a part's result follows from, besides the model: its name in the cache."""

    def start(self, loaded: LoadedModel, prompt: str | None) -> Callable[[str, Path, Callable[[int, int], None]], Any]:
        """With a subject's model and prompt style: a function that runs one part and gives its result in lm-eval's
        form. It takes the part's name, a file to keep answers in, and who is told how many of how many are done.
        """

    def scores(self, results: Results) -> list[Score]:
        """One subject's scores."""


@dataclass(frozen=True)
class EmbeddedRunner:
    """The embedded suite.

    Attributes:
        prompt: style for all subjects; None for each one's own, or chat where there is a template, else alpaca.
        limit: most examples of a part.
        max_length: tokens of prompt and response.
        batch_size: sequences a batch.
        say: told what takes long.
    """

    prompt: str | None
    limit: int | None
    max_length: int
    batch_size: int
    say: Say

    @property
    def parts(self) -> list[str]:
        """The measurements."""
        return [measure.name for measure in embedded.SUITE]

    def facts(self, part: str) -> object:
        """The suite's version and the setting."""
        return "embedded", embedded.VERSION, part, self.prompt, self.limit, self.max_length

    def start(self, loaded: LoadedModel, prompt: str | None) -> Callable[[str, Path, Callable[[int, int], None]], Any]:
        """Runs measurements; none takes long enough to keep answers."""
        style: Any = self.prompt or prompt
        if style is None:
            style = style_of(loaded.tokenizer)
            self.say(f"Prompt style: {style} (choose another with --prompt)")
        setting = embedded.Setting(style, self.max_length, self.batch_size, self.limit)

        def run(part: str, _: Path, on_done: Callable[[int, int], None]) -> dict[str, Any]:
            measure = embedded.named(part)
            on_done(0, self.limit or measure.examples)
            row = embedded.measure(loaded, measure, setting, self.say)
            return {
                "results": {part: row},
                "versions": {part: embedded.VERSION},
                "n-shot": {part: 0},
                "higher_is_better": {part: {measure.metric.partition(",")[0]: measure.kind != "nll"}},
                "n-samples": {part: {"original": row["sample_len"], "effective": row["sample_len"]}},
            }

        return run

    def scores(self, results: Results) -> list[Score]:
        """Likelihoods in nats, shares in percent."""
        return [embedded.score(measure, results[measure.name]) for measure in embedded.SUITE]


@dataclass
class HarnessRunner:
    """Benchmarks of the paper; their questions are loaded when it is made.

    Attributes:
        benchmarks: which.
        files: local questions by task.
        run_code: run programs that the model writes.
        limit: most questions of a part.
        chat: put prompts into the chat template.
        batch_size: sequences a batch.
    """

    benchmarks: Sequence[Benchmark]
    files: Mapping[str, Files]
    run_code: bool
    limit: int | None
    chat: bool
    batch_size: int
    _tasks: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._tasks = harness.load_tasks(self.benchmarks, self.files, run_code=self.run_code)

    @property
    def parts(self) -> list[str]:
        """lm-eval's tasks."""
        return list(self._tasks)

    def facts(self, part: str) -> object:
        """lm-eval's version, the task's, and the digest of local questions."""
        local = self.files[part].digest() if part in self.files else None
        shots = self._tasks[part].config.num_fewshot
        version = str(self._tasks[part].config.metadata)
        return "lm-eval", harness.version(), part, version, shots, self.limit, self.chat, local

    def start(self, loaded: LoadedModel, prompt: str | None) -> Callable[[str, Path, Callable[[int, int], None]], Any]:
        """Runs tasks; answers are kept as they come."""
        lm = harness.model(loaded.model, loaded.tokenizer, self.batch_size)

        def run(part: str, file: Path, on_done: Callable[[int, int], None]) -> dict[str, Any]:
            answers = Answers(file)
            return harness.run(lm, self._tasks[part], answers, limit=self.limit, chat=self.chat, on_done=on_done)

        return run

    def scores(self, results: Results) -> list[Score]:
        """One score a benchmark, the mean over its parts' questions."""
        found = []
        for one in self.benchmarks:
            row = harness.headline(one, results, harness.parts(one, self.files))
            facts = (one.name, one.title, one.domain, one.in_domain)
            found.append(Score(*facts, "%", row["score"], row["stderr"], row["questions"]))
        return found

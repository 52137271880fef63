"""The paper's benchmarks through EleutherAI's lm-eval: its tasks and ours, its scores, its format of results."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedsrd.errors import EvaluationError
from fedsrd.evaluation import sandbox
from fedsrd.evaluation.answers import Answers, in_chunks
from fedsrd.evaluation.local_files import Files
from fedsrd.evaluation.suites import Benchmark

CHUNK = 16
"""Batches between two times that answers are written to the disk."""

SHOTS_SEED = 1234
"""Of the draw of worked examples: lm-eval's own default."""
_LM_EVALS = ("agieval", "gsm8k", "hendrycks_math", "medmcqa", "medqa")
"""Folders of lm-eval's tasks that the paper's benchmarks need."""

OnDone = Callable[[int, int], None]


def load_tasks(benchmarks: Sequence[Benchmark], files: Mapping[str, Files], *, run_code: bool) -> dict[str, Any]:
    """lm-eval's task objects by name, with their questions loaded.

    Args:
        benchmarks: whose parts. Of one with several parts and local files, the parts that have files.
        files: local questions by task.
        run_code: whether programs that the model writes may be run.

    Raises:
        EvaluationError: lm-eval is not installed, questions cannot be had, or code would have to run and must or can
            not.
    """
    _lm_eval()
    code = [benchmark.name for benchmark in benchmarks if benchmark.executes]
    if code and not run_code:
        raise EvaluationError(
            f"{', '.join(code)}: the score comes from running programs that the model writes; allow it with --run-code "
            "(in a process without network, files and other processes), or leave them out with --tasks"
        )
    if code:
        sandbox.check()
    with _quiet():
        manager = _manager()
        found: dict[str, Any] = {}
        for benchmark in benchmarks:
            for task in parts(benchmark, files):
                found[task] = _task(manager, benchmark, task, files.get(task))
    return found


def _manager() -> Any:
    """An index of our tasks and of the few of lm-eval's that the paper uses; indexing all of lm-eval takes 15 s."""
    import lm_eval.tasks

    theirs = Path(lm_eval.tasks.__file__).parent
    ours = resources.files("fedsrd").joinpath("evaluation/tasks")
    return lm_eval.tasks.TaskManager(
        include_path=[str(ours), *(str(theirs / name) for name in _LM_EVALS)], include_defaults=False
    )


def parts(benchmark: Benchmark, files: Mapping[str, Files]) -> list[str]:
    """The tasks of a benchmark that are run: those with local files, or all where none has."""
    local = [task for task in benchmark.tasks if task in files]
    return local or list(benchmark.tasks)


def _task(manager: Any, benchmark: Benchmark, name: str, files: Files | None) -> Any:
    override: dict[str, Any] = {"task": name, "num_fewshot": 0 if benchmark.own_shots else benchmark.shots}
    if files is not None:
        override |= files.override()
    try:
        loaded = manager.load([{"group": f"{benchmark.name}_", "task": [override]}])
    except Exception as error:  # data sets fail in every way that a network and a reader have
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvaluationError(
            f"{benchmark.title}: the questions of {name} cannot be loaded: {reason}\n"
            f"Check the network and the hub's access rules, or name local files: --data {benchmark.name}=PATH"
        ) from None
    return loaded["tasks"][name]


def model(network: Any, tokenizer: Any, batch_size: int) -> Any:
    """A loaded model as lm-eval takes it; its answers can be kept (`run`)."""
    _lm_eval()
    from lm_eval.models.huggingface import HFLM

    class Kept(HFLM):  # type: ignore[misc, unused-ignore]
        """Answers in chunks, and takes those that the disk has."""

        answers: Answers
        on_done: OnDone

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found = self._chunked(requests, super().loglikelihood)
            return [(float(value), bool(greedy)) for value, greedy in found]

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
            return self._chunked(requests, super().generate_until)

        def _chunked(self, requests: Any, ask: Any) -> list[Any]:
            return in_chunks(
                requests,
                lambda request: request.args,
                lambda chunk: ask(chunk, disable_tqdm=True),
                self.answers,
                CHUNK * batch_size,
                self.on_done,
            )

    with _quiet():
        return Kept(pretrained=network, tokenizer=tokenizer, batch_size=batch_size, backend="causal")


def run(
    lm: Any,
    task: Any,
    answers: Answers,
    *,
    limit: int | None,
    chat: bool,
    on_done: OnDone = lambda done, total: None,
) -> dict[str, Any]:
    """Runs one task.

    Args:
        lm: as `model` makes it.
        task: of `load_tasks`.
        answers: where answers are kept; those that are there are not asked for again.
        limit: most questions; None for all.
        chat: put prompts into the tokenizer's chat template.
        on_done: told how many of how many requests are answered.

    Returns:
        lm-eval's results of this task, without samples and machine information.
    """
    import lm_eval

    lm.answers, lm.on_done = answers, on_done
    task.set_fewshot_seed(seed=SHOTS_SEED)
    if task.OUTPUT_TYPE == "generate_until":
        wanted = dict(task.config.generation_kwargs or {}).get("max_gen_toks", lm.max_gen_toks)
        # Half of a short context at most: the other half is the question's.
        task.set_config("generation_kwargs", {"max_gen_toks": min(wanted, lm.max_length // 2)}, update=True)
    with _quiet():
        found = lm_eval.evaluate(
            lm,
            task_dict={"tasks": {task.config.task: task}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
            apply_chat_template=chat,
            # The sandbox was checked by `load_tasks`, and it is our tasks alone that run code.
            confirm_run_unsafe_code=True,
        )
    kept = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    plain: dict[str, Any] = json.loads(json.dumps({key: found[key] for key in kept}, default=str))
    return plain


def version() -> str:
    """lm-eval's version."""
    import importlib.metadata

    return importlib.metadata.version("lm_eval")


def _lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise EvaluationError(
            f"the paper's benchmarks need lm-eval ({error}); install it with: pip install 'fedsrd[evaluate]'. "
            "The embedded suite needs nothing more"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice and bars of the libraries inside; our own display writes to standard output."""
    from datasets.utils import logging as datasets_logging

    from fedsrd.training.quiet import quiet_libraries

    datasets_logging.disable_progress_bar()
    harness = logging.getLogger("lm_eval")
    level = harness.level
    harness.setLevel(logging.CRITICAL)
    try:
        with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        harness.setLevel(level)


def headline(benchmark: Benchmark, results: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """A benchmark's one score from lm-eval's results: the mean over its questions.

    Args:
        benchmark: which.
        results: lm-eval's "results".
        tasks: the parts that were run.

    Returns:
        "score" and "stderr" in percent, "questions", and "parts" by name where there are several.
    """
    rows = {task: results[task] for task in tasks}
    counts = {task: int(row["sample_len"]) for task, row in rows.items()}
    whole = sum(counts.values())
    scores = {task: 100 * float(row[benchmark.metric]) for task, row in rows.items()}
    name, _, filtered = benchmark.metric.partition(",")
    errors = {task: _number(row.get(f"{name}_stderr,{filtered}")) for task, row in rows.items()}
    mean = sum(counts[task] * scores[task] for task in rows) / whole
    known = [value for value in errors.values() if value is not None]
    error = (
        100 * sum((counts[task] / whole * (errors[task] or 0.0)) ** 2 for task in rows) ** 0.5
        if len(known) == len(rows)
        else None
    )
    return {
        "score": mean,
        "stderr": error,
        "questions": whole,
        **({"parts": scores} if len(rows) > 1 else {}),
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

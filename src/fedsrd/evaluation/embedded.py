"""The embedded suite: what packages carry, in minutes on a CPU, by likelihood and one generated exact match.

Results have lm-eval's shape, "METRIC,FILTER" with its standard error, so that they lie beside those of its tasks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from fedsrd.data import catalog
from fedsrd.data.examples import Example, normalised
from fedsrd.data.prompt import Style, encode, prompt_ids
from fedsrd.data.sources import hpo
from fedsrd.data.sources.benchmarks import options
from fedsrd.errors import EvaluationError
from fedsrd.evaluation import choices, exact, nll
from fedsrd.evaluation.nll import Lent
from fedsrd.evaluation.scores import Score
from fedsrd.packages import Say, silent
from fedsrd.suggest import did_you_mean

VERSION = 1
"""Of the suite: whoever changes what is measured counts it up."""
NEW_TOKENS = 120
"""Of an answer that is generated; worked answers have 40 to 90."""
LABEL_TOKENS = 8
"""Of a label; the longest of ours has 5."""


@dataclass(frozen=True)
class Measure:
    """One measurement of the suite.

    Attributes:
        name: unique.
        title: for people.
        domain: code, medical, finance, math, general or law.
        in_domain: whether an embedded specialist trains on this domain.
        kind: held-out response NLL, multiple choice by likelihood, generated exact match of numbers ("exact"), or of
            the whole answer ("label").
        data: embedded data sets, of which the held-out parts are used, in turn.
        examples: how many, unless said otherwise.
        in_suite: whether `fedsrd evaluate` runs it; the others are for recipes that name them.
    """

    name: str
    title: str
    domain: str
    in_domain: bool
    kind: Literal["nll", "choice", "exact", "label"]
    data: tuple[str, ...]
    examples: int
    in_suite: bool = True

    @property
    def metric(self) -> str:
        """lm-eval's name of the score that counts."""
        return {
            "nll": "nll,none",
            "choice": "acc,none",
            "exact": "exact_match,flexible-extract",
            "label": "exact_match,none",
        }[self.kind]


FINDINGS = tuple(f"findings-{clinic}" for clinic in hpo.CLINICS)
MEASURES = (
    Measure("code-nll", "code NLL", "code", True, "nll", ("code",), 24),
    Measure("medical-nll", "medical NLL", "medical", True, "nll", ("medical",), 24),
    Measure("finance-nll", "finance NLL", "finance", True, "nll", ("finance",), 24),
    Measure("math-nll", "math NLL", "math", True, "nll", ("math",), 24),
    Measure("humaneval-nll", "HumanEval NLL", "code", True, "nll", ("humaneval",), 24),
    Measure("general-nll", "LogiQA NLL", "general", False, "nll", ("logiqa",), 24),
    Measure("law-nll", "tort law NLL", "law", False, "nll", ("tort-law",), 24),
    Measure("math-exact", "math, exact match", "math", True, "exact", ("math",), 24),
    Measure("medmcqa", "MedMCQA", "medical", True, "choice", ("medmcqa",), 48),
    Measure("logiqa", "LogiQA", "general", False, "choice", ("logiqa",), 48),
    Measure("tort-law", "US tort law", "law", False, "choice", ("tort-law",), 48),
    Measure("findings-nll", "organ system NLL", "medical", True, "nll", FINDINGS, 96, in_suite=False),
    *(
        Measure(f"{name}-label", f"{clinic}'s findings", "medical", True, "label", (name,), 24, in_suite=False)
        for clinic, name in zip(hpo.CLINICS, FINDINGS, strict=True)
    ),
)
SUITE = tuple(measure for measure in MEASURES if measure.in_suite)
"""What `fedsrd evaluate` runs."""


def named(name: str) -> Measure:
    """The measurement of that name. Raises EvaluationError if there is none (the nearest is named)."""
    found = {measure.name: measure for measure in MEASURES}
    if name not in found:
        hint = did_you_mean(name, found, "did you mean {!r}? ")
        raise EvaluationError(f"no embedded benchmark {name!r}; {hint}Known: {', '.join(found)}")
    return found[name]


@dataclass(frozen=True)
class Setting:
    """How examples are put to a model.

    Attributes:
        style: of the prompt.
        max_length: tokens of prompt and response, of likelihoods.
        batch_size: sequences a batch.
        limit: most examples; None for each measurement's own number.
    """

    style: Style
    max_length: int = 160
    batch_size: int = 8
    limit: int | None = None


def measure(lent: Lent, what: Measure, setting: Setting, say: Say = silent) -> dict[str, Any]:
    """One measurement of a model.

    Args:
        lent: the model.
        what: which measurement.
        setting: how.
        say: told what takes long.

    Returns:
        The row of lm-eval's "results": metrics, their standard errors, and "sample_len".

    Raises:
        DataError, PackageError: the data cannot be had, or the style does not fit the tokenizer.
    """
    parts = [catalog.load(name, "test", say) for name in what.data]
    examples = [example for turn in zip_longest(*parts) for example in turn if example is not None]
    if what.kind == "choice":
        # Those whose options can be told apart.
        examples = [example for example in examples if example.response in options(example.instruction)]
    chosen = examples[: setting.limit or what.examples]
    return {"alias": what.name, "sample_len": len(chosen), **_SCORERS[what.kind](lent, chosen, setting)}


def score(measure: Measure, row: Mapping[str, Any]) -> Score:
    """A row as one figure: likelihoods in nats, shares in percent."""
    name, _, filtered = measure.metric.partition(",")
    value, error = row[measure.metric], row[f"{name}_stderr,{filtered}"]
    scale = 1 if measure.kind == "nll" else 100
    return Score(
        measure.name,
        measure.title,
        measure.domain,
        measure.in_domain,
        "nats" if measure.kind == "nll" else "%",
        scale * value,
        None if error is None else scale * error,
        row["sample_len"],
    )


def before_and_after(benchmarks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[Score]]:
    """The scores of a run's benchmarks (its summary's "base" and "final" rows), for `scores.table`."""
    return {
        label: [score(named(name), row) for name, row in benchmarks[key].items()]
        for label, key in (("base model", "base"), ("after", "final"))
    }


Row = dict[str, float | None]


def _nll(lent: Lent, examples: Sequence[Example], setting: Setting) -> Row:
    encoded = [encode(example, setting.style, lent.tokenizer, setting.max_length) for example in examples]
    found = nll.likelihood(nll.by_example(lent, encoded, setting.batch_size))
    return {"nll,none": found.mean, "nll_stderr,none": found.stderr}


def _choice(lent: Lent, examples: Sequence[Example], setting: Setting) -> Row:
    questions = []
    for example in examples:
        texts = options(example.instruction)
        tokens = [list(lent.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # Whole: a question that is cut has lost its options.
        prompt = prompt_ids(example.instruction, setting.style, lent.tokenizer)
        questions.append(choices.Question(prompt, tuple(tokens), tuple(map(len, texts)), texts.index(example.response)))
    whole, each = choices.answered(lent, questions, setting.batch_size)
    return {**_share("acc", "none", whole), **_share("acc_norm", "none", each)}


def _exact(lent: Lent, examples: Sequence[Example], setting: Setting) -> Row:
    prompts = [prompt_ids(example.instruction, setting.style, lent.tokenizer) for example in examples]
    # One token at a time is bound by reading the weights: more sequences cost next to nothing.
    answers = exact.generate(lent, prompts, NEW_TOKENS, 4 * setting.batch_size)
    right = [exact.matches(answer, example.response) for answer, example in zip(answers, examples, strict=True)]
    return _share("exact_match", "flexible-extract", right)


def _label(lent: Lent, examples: Sequence[Example], setting: Setting) -> Row:
    prompts = [prompt_ids(example.instruction, setting.style, lent.tokenizer) for example in examples]
    answers = exact.generate(lent, prompts, LABEL_TOKENS, 8 * setting.batch_size)
    wanted = [normalised(example.response) for example in examples]
    right = [normalised(answer) == label for answer, label in zip(answers, wanted, strict=True)]
    return _share("exact_match", "none", right)


def _share(metric: str, filtered: str, hits: Sequence[bool]) -> Row:
    count = len(hits)
    share = sum(hits) / count
    # lm-eval's: of a mean, with the sample's own variance.
    error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
    return {f"{metric},{filtered}": share, f"{metric}_stderr,{filtered}": error}


_SCORERS: dict[str, Callable[[Lent, Sequence[Example], Setting], Row]] = {
    "nll": _nll,
    "choice": _choice,
    "exact": _exact,
    "label": _label,
}

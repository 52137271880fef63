"""The benchmarks of arXiv 2510.04601 as tasks of EleutherAI's lm-eval: which task, how many shots, which score."""

from dataclasses import dataclass
from typing import Literal

from fedsrd.errors import EvaluationError
from fedsrd.suggest import did_you_mean

SuiteName = Literal["embedded", "in-domain", "out-of-domain", "paper"]
SUITES: tuple[SuiteName, ...] = ("embedded", "in-domain", "out-of-domain", "paper")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the paper.

    Attributes:
        name: for `--tasks` and `--data`.
        title: as its authors write it.
        domain: code, medical, finance, math, general or law.
        in_domain: whether a specialist trains on this domain.
        tasks: lm-eval's names of its parts; ours begin with "fedsrd_".
        metric: lm-eval's name of the score that counts, in [0, 1].
        shots: worked examples in the prompt, as in the paper.
        count: questions, as the paper counts them.
        columns: that a local file must have.
        source: where it is from.
        executes: whether it runs code that the model wrote.
        own_shots: whether the shots stand in the data or task itself, so that none are drawn.
    """

    name: str
    title: str
    domain: str
    in_domain: bool
    tasks: tuple[str, ...]
    metric: str
    shots: int
    count: int
    columns: tuple[str, ...]
    source: str
    executes: bool = False
    own_shots: bool = False


_MATH = ("algebra", "counting_and_prob", "geometry", "intermediate_algebra", "num_theory", "prealgebra", "precalc")
_AGIEVAL = (
    *(f"gaokao_{subject}" for subject in ("biology", "chemistry", "chinese", "english", "geography", "history")),
    *("gaokao_mathcloze", "gaokao_mathqa", "gaokao_physics", "jec_qa_ca", "jec_qa_kd", "logiqa_en", "logiqa_zh"),
    *("aqua_rat", "lsat_ar", "lsat_lr", "lsat_rc", "math", "sat_en", "sat_en_without_passage", "sat_math"),
)
_LAWBENCH = (
    *(f"1_{number}" for number in range(1, 3)),
    *(f"2_{number}" for number in range(1, 11)),
    *(f"3_{number}" for number in range(1, 9)),
)

BENCHMARKS: dict[str, Benchmark] = {
    found.name: found
    for found in (
        Benchmark(
            "humaneval",
            "HumanEval",
            "code",
            True,
            ("fedsrd_humaneval",),
            "pass@1,none",
            0,
            164,
            ("prompt", "canonical_solution", "test", "entry_point"),
            "Chen et al., arXiv 2107.03374",
            executes=True,
        ),
        Benchmark(
            "mbpp",
            "MBPP (sanitized)",
            "code",
            True,
            ("fedsrd_mbpp",),
            "pass@1,none",
            3,
            257,
            ("prompt", "code", "test_list"),
            "Austin et al., arXiv 2108.07732",
            executes=True,
        ),
        Benchmark(
            "medqa",
            "MedQA",
            "medical",
            True,
            ("medqa_4options",),
            "acc,none",
            1,
            1273,
            ("sent1", "ending0", "ending1", "ending2", "ending3", "label"),
            "Jin et al., arXiv 2009.13081",
        ),
        Benchmark(
            "medmcqa",
            "MedMCQA",
            "medical",
            True,
            ("medmcqa",),
            "acc,none",
            1,
            4183,
            ("question", "opa", "opb", "opc", "opd", "cop"),
            "Pal et al., CHIL 2022",
        ),
        Benchmark(
            "fineval",
            "FinEval",
            "finance",
            True,
            ("fedsrd_fineval",),
            "acc,none",
            0,
            4661,
            ("question", "A", "B", "C", "D", "answer"),
            "Zhang et al., arXiv 2308.09975",
        ),
        Benchmark(
            "financeiq",
            "FinanceIQ",
            "finance",
            True,
            ("fedsrd_financeiq",),
            "acc,none",
            0,
            7173,
            ("Question", "A", "B", "C", "D", "Answer"),
            "Duxiaoman-DI, 2023",
        ),
        Benchmark(
            "gsm8k",
            "GSM8K",
            "math",
            True,
            ("gsm8k",),
            "exact_match,flexible-extract",
            0,
            1319,
            ("question", "answer"),
            "Cobbe et al., arXiv 2110.14168",
        ),
        Benchmark(
            "math",
            "MATH",
            "math",
            True,
            tuple(f"hendrycks_math_{part}" for part in _MATH),
            "exact_match,none",
            0,
            5000,
            ("problem", "solution"),
            "Hendrycks et al., arXiv 2103.03874",
        ),
        Benchmark(
            "agieval",
            "AGIEval",
            "general",
            False,
            tuple(f"agieval_{part}" for part in _AGIEVAL),
            "acc,none",
            0,
            8062,
            ("query",),
            "Zhong et al., arXiv 2304.06364",
        ),
        Benchmark(
            "lawbench",
            "LawBench",
            "law",
            False,
            tuple(f"fedsrd_lawbench_{part}" for part in _LAWBENCH),
            "score,none",
            1,
            10_000,
            ("instruction", "question", "answer"),
            "Fei et al., arXiv 2309.16289",
            own_shots=True,
        ),
    )
}


def chosen(suite: SuiteName, names: list[str] | None = None) -> list[Benchmark]:
    """The benchmarks of a suite, or those named.

    Raises:
        EvaluationError: a name is none (the nearest is named), or there are none.
    """
    if names is None:
        wanted = {"in-domain": (True,), "out-of-domain": (False,), "paper": (True, False)}.get(suite, ())
        return [benchmark for benchmark in BENCHMARKS.values() if benchmark.in_domain in wanted]
    if not names:
        raise EvaluationError(f"--tasks: names no benchmark; known: {', '.join(BENCHMARKS)}")
    return [named(name, "--tasks") for name in dict.fromkeys(names)]


def named(name: str, option: str) -> Benchmark:
    """The benchmark of that name. Raises EvaluationError as `chosen`; the message names `option`."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    hint = did_you_mean(name.lower(), BENCHMARKS, "did you mean {!r}? ", cutoff=0.5)
    raise EvaluationError(f"{option} {name!r}: no such benchmark; {hint}Known: {', '.join(BENCHMARKS)}")

"""A first recipe for somebody's own data: which columns are meant, which settings fit, and the commented text."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fedsrd.data import conversation
from fedsrd.data.cells import UnfitError
from fedsrd.data.rows import Form
from fedsrd.planning import memory
from fedsrd.planning.architecture import Architecture

Tree = dict[str, Any]
PAIRS = (
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("question", "response"),
    ("input", "output"),
    ("source", "target"),
)
"""Names of columns that are known to be an instruction and its response; the first that fits is taken."""
TURNS = (*conversation.COLUMNS, "conversation")
"""Names of columns that are known to be conversations."""
LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""Tokens of a sequence that are proposed: the first that 95 % of the examples fit in."""
SMALL = 10**9
"""Parameters below which a model learns at a higher rate."""
SHARE = 0.8
"""Of a device's memory that a proposal fills."""
SEQUENCES = {"gpu": 16, "cpu": 4}
"""A step's."""
STEPS = {"gpu": 10, "cpu": 4}
"""Of a round."""
_COLUMN = 36
"""Where comments begin."""


@dataclass(frozen=True)
class Source:
    """A client's data, or a held-out set, with its name and its columns by role."""

    name: str
    source: str
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How training fits a device.

    Attributes:
        batch: sequences at a time.
        accumulation: batches a step.
        checkpointing: whether activations are computed again.
        quantization: "none" or "nf4".
    """

    batch: int
    accumulation: int
    checkpointing: bool = False
    quantization: str = "none"


@dataclass(frozen=True)
class Draft:
    """All that the recipe says. Names are those of the recipe's keys."""

    name: str
    model: str
    clients: Sequence[Source]
    held_out: Sequence[Source] = ()
    method: str = "fedsrd"
    rounds: int = 20
    rank: int = 16
    device: str = "auto"
    dtype: str = "bfloat16"
    fit: Fit = Fit(4, 1)
    steps: int = 4
    rate: float = 5e-4
    max_length: int = 512
    prompt: str = "chat"
    packing: bool = False
    epsilon: float | None = None
    delta: float = 1e-5


def columns_for(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Which columns of a data set with such a row are meant, by role, as a recipe has them; None where nobody can tell.

    >>> columns_for({"question": "why?", "answer": "because"})
    {'instruction': 'question', 'response': 'answer'}
    >>> columns_for({"instruction": "add", "input": "1, 2", "output": "3"})
    {'response': 'output'}
    >>> columns_for({"text": "once upon a time"}) is None
    True
    """
    known = {name.lower(): name for name in row}
    for turns in TURNS:
        if turns in known:
            found = {"messages": known[turns]}
            return found if _fits(found, row) else None
    for instruction, response in PAIRS:
        if instruction in known and response in known:
            named = {"instruction": known[instruction], "response": known[response]}
            # What has its role's own name goes without saying.
            found = {role: name for role, name in named.items() if role != name}
            return found if _fits(found, row) else None
    return None


def _fits(columns: Mapping[str, str], row: Mapping[str, Any]) -> bool:
    form = Form(columns)
    try:
        form.examples(row)
    except (UnfitError, KeyError):
        return False
    return True


def length_for(high: int) -> int:
    """Tokens of a sequence for data of which 95 % are no longer than `high`."""
    return next((length for length in LENGTHS if high <= length), LENGTHS[-1])


def delta_for(most: int) -> float:
    """A chance beyond epsilon for clients of at most so many examples: a power of ten, at most a tenth of one of them.

    >>> delta_for(800), delta_for(100_000)
    (0.0001, 1e-06)
    """
    return float(f"1e-{math.ceil(math.log10(10 * max(most, 1)))}")


def fit(sizes: Architecture, has: int | None, length: int, kind: str, *, private: bool, four_bits: bool) -> Fit:
    """The largest batch that a device's memory has room for.

    Args:
        sizes: of the model with its adapter.
        has: bytes of memory; None: nobody knows, and a small batch is taken.
        length: tokens of a sequence.
        kind: "gpu" or "cpu".
        private: whether gradients are by example, which excludes checkpointing.
        four_bits: whether a base of 4 bits may be proposed.
    """
    whole = SEQUENCES[kind]
    if has is None:
        return Fit(min(4, whole), whole // min(4, whole))
    tries = [("none", False)] + ([] if private else [("none", True)])
    tries += [("nf4", False), ("nf4", True)][: 1 if private else 2] if four_bits else []
    for least in (4, 1):
        # A batch of four with more work is better than one of one.
        for quantization, checkpointing in tries:
            batch = whole
            while batch >= min(least, whole):
                dtype = "bfloat16" if quantization == "none" else "int4"
                used = memory.client(sizes, dtype, batch, length, checkpointing=checkpointing, by_example=private)
                if used.total <= SHARE * has:
                    return Fit(batch, whole // batch, checkpointing, quantization)
                batch //= 2
    quantization, checkpointing = tries[-1]
    return Fit(1, whole, checkpointing, quantization)


def tree(draft: Draft) -> Tree:
    """The recipe as a tree."""
    found: Tree = tomllib.loads(text(draft))
    return found


def text(draft: Draft) -> str:
    """The recipe as TOML with comments."""
    fitted = draft.fit
    lines = [
        "# A federation on your own data. `fedsrd check` says what is wrong with it and what it will take;",
        "# `fedsrd run` runs all clients in this process. Across sites: docs/deploy.md; every key:",
        "# docs/reference/recipe.md.",
        _line("name", draft.name),
        _line("seed", 0, "the same recipe and seed give the same bytes"),
        _line("rounds", draft.rounds),
        "",
        "[model]",
        _line("id", draft.model, "a Hugging Face id, a folder, or embedded:smollm2-135m"),
        _line("dtype", draft.dtype, "the frozen base; adapters are always float32"),
        _line("device", draft.device, "auto: the first GPU, else the CPU"),
    ]
    if fitted.quantization != "none":
        lines.append(_line("quantization", fitted.quantization, 'the base in 4 bits: pip install "fedsrd[qlora]"'))
    if fitted.checkpointing:
        lines.append(_line("gradient_checkpointing", True, "less memory, a third more time"))
    lines += [
        "",
        "[lora]",
        _line("rank", draft.rank),
        _line("alpha", 2 * draft.rank),
        "",
        "[training]",
        _line("steps", draft.steps, "optimizer steps of a client in a round"),
        _line("batch_size", fitted.batch, "sequences at a time: what memory has room for"),
        _line("accumulation", fitted.accumulation, "batches a step"),
        _line("learning_rate", draft.rate, "where to start; search with fedsrd compare --learning-rates"),
        _line("max_length", draft.max_length, "tokens of prompt and response; what is longer is cut"),
        _line("prompt", draft.prompt, "chat: the model's own template; or alpaca, plain"),
    ]
    if draft.packing:
        lines.append(_line("packing", True, "no time spent on padding; the same gradients"))
    lines += [
        "",
        "[method]",
        _line("name", draft.method),
        "",
        _commented("[wire]", "number types of what travels; float32 loses nothing"),
        'uplink = { values = "int8" }',
        'downlink = { values = "int8" }',
    ]
    if draft.epsilon is not None:
        lines += [
            "",
            _commented("[privacy.examples]", "DP-SGD at every client (docs/differential-privacy.md)"),
            _line("epsilon", float(draft.epsilon), "what the whole run may spend of a client's examples"),
            _line("delta", draft.delta, "at most a tenth of one over the number of examples"),
        ]
    for client in draft.clients:
        lines += ["", "[[clients]]", _line("name", client.name), _data(client)]
    lines += ["", "[evaluation]", _line("every", 5, "rounds between measurements; 0: before and after only")]
    for held in draft.held_out:
        lines += ["", "[[evaluation.sets]]", _line("name", held.name), _data(held)]
    if not draft.held_out:
        lines += [
            "",
            "# Nothing is held out yet, so how good the adapter is will not be measured. Keep some examples apart:",
            "# [[evaluation.sets]]",
            '# name = "held-out"',
            '# data = { source = "held-out.jsonl" }',
        ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object, comment: str = "") -> str:
    return _commented(f"{key} = {_value(value)}", comment)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COLUMN}}# {comment}" if comment else line


def _data(one: Source) -> str:
    parts = [f"source = {_value(one.source)}"]
    if one.columns:
        inner = ", ".join(f"{role} = {_value(name)}" for role, name in one.columns.items())
        parts.append(f"columns = {{ {inner} }}")
    return f"data = {{ {', '.join(parts)} }}"


def _value(value: object) -> str:
    """One value as TOML writes it."""
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")

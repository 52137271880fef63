"""What a comparison's results.json holds, typed; and how it is read and written. Formats as in `runs.records`."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from fedsrd.runs.records import FORMAT, Metrics, Stored, checked, read_tree


class Spread(Stored):
    """Mean and sample standard deviation (None of one value) over `n` seeds."""

    mean: float
    sd: float | None
    n: int


class Curve(Stored):
    """One finished run.

    Attributes:
        seed: its seed.
        rounds: the evaluated rounds.
        in_domain: mean response NLL of the in-domain sets after each, nats a token.
        own: the same of every client's model on its own set; equal to `in_domain` where there is one global model.
        out_of_domain: mean of the other sets; None where there are none.
        by_set: final NLL of each set.
        base: NLL of each set before the first round.
        bytes_up: all clients' uplink bytes so far, after each evaluated round.
        bytes_down: likewise down.
        seconds: by phase, the mean round.
        density: uplink density by layer and factor, the mean round.
        benchmarks: the embedded suite's rows before ("base") and after ("final"); empty where none were asked for.
    """

    seed: int
    rounds: list[int]
    in_domain: list[float]
    own: list[float]
    out_of_domain: list[float | None]
    by_set: dict[str, float]
    base: dict[str, float]
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: dict[str, float]
    density: dict[str, float] = Field(default_factory=dict)
    benchmarks: dict[str, dict[str, Metrics]] = Field(default_factory=dict)


class Failure(Stored):
    """A run that ended in an error, or whose model diverged."""

    seed: int
    reason: str


class BenchmarkRow(Stored):
    """One benchmark's score before ("base") and after the run, in nats or percent, with the questions' own error."""

    unit: str
    title: str
    base: float
    stderr: float | None
    after: Spread | None


class Row(Stored):
    """One variant of a comparison.

    Attributes:
        label: what it is called.
        method: its method's name.
        reference: whether it is a point of reference, which sends nothing.
        personal: whether every client ends with a model of its own.
        point: the point of its grid that it is compared at; None while that is not known.
        search: the score of every point of its grid; None for one that failed.
        runs: how many seeds came to their end.
        failed: those that did not.
        clients: how many train.
        base: in-domain NLL before the first round.
        by_set: final NLL of each set.
        in_domain: final NLL, as in `Curve`; so are `own` and `out_of_domain`.
        bytes_up: of all clients and rounds.
        bytes_down: likewise down.
        rounds: the last evaluated one.
        seconds: by phase, the mean round.
        benchmarks: of the embedded suite.
        curves: one a seed.
        bytes_to_target: up and down, until the comparison's target was reached; None where it was not.
    """

    label: str
    method: str
    reference: bool
    personal: bool
    point: dict[str, Any] | None
    search: dict[str, float | None]
    runs: int
    failed: list[Failure]
    clients: int
    base: Spread | None
    by_set: dict[str, Spread | None]
    in_domain: Spread | None
    own: Spread | None
    out_of_domain: Spread | None
    bytes_up: Spread | None
    bytes_down: Spread | None
    rounds: int
    seconds: dict[str, Spread | None]
    benchmarks: dict[str, BenchmarkRow] = Field(default_factory=dict)
    curves: list[Curve]
    bytes_to_target: Spread | None = None


class Results(Stored):
    """A comparison.

    Attributes:
        command: what repeats it.
        environment: versions of what ran it.
        name: of the recipe.
        seeds: of the runs that are compared.
        grid_seeds: of the search.
        target: the in-domain NLL that `Row.bytes_to_target` asks for; None where no federated run came to its end.
        rows: the variants, in the recipe's order.
    """

    command: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    name: str
    seeds: list[int]
    grid_seeds: list[int]
    target: float | None
    rows: list[Row]


def results_text(results: Results) -> str:
    """The content of results.json."""
    return json.dumps({"format": FORMAT, **results.plain()}, indent=1, allow_nan=False) + "\n"


def read_results(path: Path) -> Results:
    """What a results.json holds. Raises RunFolderError as `records.read_rounds`."""
    return checked(Results, read_tree(path), str(path))

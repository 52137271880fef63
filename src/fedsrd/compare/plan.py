"""What is compared: variants of one recipe, a small grid for each, and seeds.

A comparison is a recipe with a [compare] table. Every variant runs at every point of its grid with the grid's seeds;
the point with the best quality is then run with the other seeds. So each method is compared at its own best learning
rate, found by the same small search.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsrd import methods
from fedsrd.errors import RecipeError
from fedsrd.explain import explain, refuse_unknown
from fedsrd.recipe import Name, Recipe, parse, put, read
from fedsrd.text import foreign

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
MOST_POINTS = 10_000
"""Of one variant's grid."""
Point = tuple[tuple[str, Any], ...]
"""One point of a grid: its keys with their values."""


class VariantSection(BaseModel):
    """One row of the table: a method with its options, and other keys of the recipe to set.

    Attributes:
        label: what tables and folders call it; the method's name by default.
        method: as a recipe's [method] table.
        server_optimizer: as a recipe's [server_optimizer] table, in the place of the recipe's own.
        set: other keys, dotted, with their values.
        grid: keys to search besides the comparison's grid; a key given here replaces that one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: Name
    method: dict[str, Any]
    server_optimizer: dict[str, Any] | None = None
    set: dict[str, Any] = {}
    grid: Grid = {}

    @model_validator(mode="before")
    @classmethod
    def _label_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and "label" not in given and isinstance(given.get("method"), dict):
            return {"label": given["method"].get("name"), **given}
        return given


class CompareSection(BaseModel):
    """A comparison recipe's [compare] table.

    Attributes:
        methods: names of methods, each a variant with its default options (or the recipe's, for the recipe's method).
        variants: further variants.
        seeds: of the runs that the table is made of.
        grid: dotted keys, each with the values to try.
        grid_seeds: of the search; the first of `seeds` by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    methods: list[str] = []
    variants: list[VariantSection] = []
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    grid: Grid = {}
    grid_seeds: list[Seed] = []

    @field_validator("seeds", "grid_seeds", "methods")
    @classmethod
    def _no_repeats(cls, given: list[Any]) -> list[Any]:
        repeated = sorted({str(entry) for entry in given if given.count(entry) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} given twice; every run would be counted twice")
        return given


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        label: its variant's.
        point: its grid point.
        seed: its seed.
        recipe: all of it.
    """

    label: str
    point: Point
    seed: int
    recipe: Recipe

    def folder(self, out: Path) -> Path:
        """Where it lies in a comparison's folder."""
        return out / "runs" / self.label / slug(self.point) / f"seed-{self.seed}"


def slug(point: Point) -> str:
    """A grid point as a folder's name; empty where there is no grid.

    >>> slug((("training.learning_rate", 0.001), ("server_optimizer.learning_rate", 2.0)))
    'training.learning_rate=0.001,server_optimizer.learning_rate=2.0'
    """
    return ",".join(f"{key}={value}" for key, value in point).replace("/", "_")


@dataclass(frozen=True)
class Comparison:
    """A checked comparison.

    Attributes:
        name: the recipe's.
        variants: rows, in order.
        seeds: of the table's runs.
        grid_seeds: of the search.
    """

    name: str
    variants: tuple[VariantSection, ...]
    seeds: tuple[int, ...]
    grid_seeds: tuple[int, ...]
    tree: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]

    def points(self, variant: VariantSection) -> list[Point]:
        """The points of a variant's grid; one empty point where there is none."""
        axes = {**self.grid, **variant.grid}
        if (count := math.prod(map(len, axes.values()))) > MOST_POINTS:
            raise RecipeError(f"variant {variant.label}: its grid has {count} points; expected at most {MOST_POINTS}")
        return [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def run(self, variant: VariantSection, point: Point, seed: int) -> Run:
        """One run. Raises RecipeError where its recipe is not valid; the message names the variant."""
        tree = copy.deepcopy(dict(self.tree))
        where = f"variant {variant.label}"
        tree["method"] = dict(variant.method)
        if variant.server_optimizer is not None:
            tree["server_optimizer"] = dict(variant.server_optimizer)
        for key, value in [*variant.set.items(), *point]:
            # A copy: a later key may reach into a table that an earlier one has set.
            put(tree, key, copy.deepcopy(value), where)
        tree["seed"] = seed
        return Run(variant.label, point, seed, parse(tree, where))

    def searches(self, variant: VariantSection) -> list[Run]:
        """The runs that choose a variant's grid point; none where there is nothing to choose."""
        points = self.points(variant)
        if len(points) == 1:
            return []
        return [self.run(variant, point, seed) for point in points for seed in self.grid_seeds]

    def finals(self, variant: VariantSection, point: Point) -> list[Run]:
        """A variant's runs in the table, at the point that was chosen."""
        return [self.run(variant, point, seed) for seed in self.seeds]

    def count(self) -> int:
        """The number of runs in all."""
        total = 0
        for variant in self.variants:
            searched = len(self.searches(variant))
            again = len(set(self.seeds) & set(self.grid_seeds)) if searched else 0
            total += searched + len(self.seeds) - again
        return total

    def each(self) -> Iterator[Run]:
        """One run of every variant and grid point, to be checked before the first starts."""
        for variant in self.variants:
            for point in self.points(variant):
                yield self.run(variant, point, self.seeds[0])

    def to_toml(self) -> str:
        """The whole comparison as one recipe, which gives the same comparison again."""
        section = CompareSection(
            variants=list(self.variants),
            seeds=list(self.seeds),
            grid=dict(self.grid),  # type: ignore[arg-type]
            grid_seeds=list(self.grid_seeds),
        ).model_dump(exclude={"methods"}, exclude_none=True)
        return tomli_w.dumps({**self.tree, "compare": section})


def load(
    path: Path | None,
    *,
    chosen: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    overrides: Sequence[str] = (),
) -> Comparison:
    """A comparison from a recipe.

    Args:
        path: a recipe, with or without a [compare] table; None for the embedded default.
        chosen: labels or methods' names, in the place of the table's; only "all" for every method.
        seeds: in the place of the table's.
        rates: learning rates to search, in the place of the table's grid.
        overrides: as `fedsrd run --set`.

    Raises:
        RecipeError: a method is unknown (the known ones are named), a seed is given twice, a variant has no
            evaluation set in domain, or its recipe is not valid. Nothing was started.
    """
    tree, where = read(path, overrides)
    given = tree.pop("compare", {})
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: compare = {foreign(given)!r}: expected a table, [compare]")
    refuse_unknown(given, list(CompareSection.model_fields), "compare")
    if seeds is not None:
        given["seeds"] = list(seeds)
        searched_with = given.get("grid_seeds", [])
        if isinstance(searched_with, list) and not all(seed in seeds for seed in searched_with):
            given["grid_seeds"] = []
    if rates is not None:
        given["grid"] = {"training.learning_rate": list(rates)}
    try:
        section = CompareSection.model_validate(given)
        listed = {variant.label: variant for variant in section.variants}
        rows = [*section.methods, *listed] if chosen is None else list(chosen)
        if rows == ["all"]:
            rows = methods.names()
        _check_rows(rows, listed, where)
        variants = tuple(listed[row] if row in listed else _plain(row, tree) for row in rows)
    except ValidationError as error:
        raise RecipeError("\n".join([f"{where}: [compare] is not valid:", *explain(error, "compare.")])) from None
    searched = tuple(section.grid_seeds or section.seeds[:1])
    name = str(tree.get("name", "comparison"))
    comparison = Comparison(name, variants, tuple(section.seeds), searched, tree, section.grid)
    # Every recipe is made once, so that a mistake in any of them shows now.
    for one in comparison.each():
        if not any(entry.in_domain for entry in one.recipe.evaluation.sets):
            raise RecipeError(
                f"{where}: variant {one.label} has no set in domain to compare by; expected one or more "
                "[[evaluation.sets]] whose in_domain is true (the default)"
            )
    return comparison


def _check_rows(rows: Sequence[str], listed: Mapping[str, VariantSection], where: str) -> None:
    if not rows:
        raise RecipeError(
            f"{where}: nothing to compare; name methods with --methods (or all), or in compare.methods. Known: "
            f"{', '.join(methods.names())}"
        )
    if repeated := sorted({row for row in rows if rows.count(row) > 1}):
        raise RecipeError(f"{', '.join(repeated)} given twice; expected every method or label once")
    for row in rows:
        if row not in listed:
            methods.get(row)


def _plain(name: str, tree: Mapping[str, Any]) -> VariantSection:
    own = tree.get("method")
    if isinstance(own, Mapping) and own.get("name") == name:
        return VariantSection(label=name, method=dict(own))
    return VariantSection(label=name, method={"name": name})

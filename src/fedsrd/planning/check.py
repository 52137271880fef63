"""Everything that can be known of a recipe without training: what is wrong with it, its data in tokens, its plan."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from fedsrd.data.examples import Example
from fedsrd.errors import FedSRDError
from fedsrd.federation import setup
from fedsrd.federation.sampling import share
from fedsrd.federation.session import load_examples
from fedsrd.packages import Say, silent
from fedsrd.planning import examples, machine, memory, recipe_plan
from fedsrd.planning.architecture import Architecture
from fedsrd.planning.examples import Fingerprints, Lengths
from fedsrd.planning.recipe_plan import Links
from fedsrd.privacy.terms import agreed, needed
from fedsrd.recipe import DataSection, Recipe
from fedsrd.runs.records import RoundRecord

Record = dict[str, Any]
RESPONSES, PROMPTS = 0.05, 0.2
"""Shares of cut examples from which on the user is warned: a cut response never ends, a cut prompt lacks its begin."""
REPEATS = 0.02
"""Share of repeats within a client's data, likewise."""
EPOCHS = 3
"""How often a round may see each example of a client before the user is told."""
FULL = 0.9
"""Share of a machine's memory that may be planned with."""


@dataclass
class Notes:
    """What was found, each once, in order; also whom `setup`'s checks tell.

    Attributes:
        errors: what keeps the recipe from being run.
        warnings: what makes a run worse, or may.
        told: told what takes long.
        whose: begins what is said of one of several runs.
        said: what was told.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    told: Say = silent
    whose: str = ""
    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Something that takes a while, or is good to know; the same for several runs is said once."""
        if text not in self.said:
            self.said.append(text)
            self.told(text)

    def warn(self, text: str) -> None:
        """Something to look at."""
        if self.whose + text not in self.warnings:
            self.warnings.append(self.whose + text)

    def error(self, text: str) -> None:
        """Something that ends a run before it begins."""
        if self.whose + text not in self.errors:
            self.errors.append(self.whose + text)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Nothing: there are no rounds."""

    def round_done(self, record: RoundRecord) -> None:
        """Nothing, likewise."""

    def attempt(self, what: Callable[[], Any]) -> Any:
        """What `what` gives; None, and a note, where it is the user's to mend."""
        try:
            return what()
        except FedSRDError as error:
            self.error(str(error))
            return None


@dataclass
class DataSet:
    """A client's data, or a held-out set.

    Attributes:
        name: its name.
        sections: where it comes from.
        examples: what was read; None where it cannot be, or is known to its site alone.
        held_out: whether it is one.
    """

    name: str
    sections: tuple[DataSection, ...]
    examples: list[Example] | None
    held_out: bool


def check(
    runs: Mapping[str, Recipe], rows: int, links: Links, density: float, *, example: bool = True, say: Say = silent
) -> Record:
    """What is known of a recipe without weights, as plain data.

    Args:
        runs: one recipe, or those of a comparison, by label: the settings of all are checked, and the first one's data.
        rows: examples of each set that are made into tokens.
        links: of a client.
        density: share of elements that an adaptive ratio keeps.
        example: whether one example is rendered; it is the only content in the result.
        say: told what takes long.
    """
    notes = Notes(told=say)
    for label, one in runs.items():
        notes.whose = label and f"{label}: "
        for settle in setup.settings_checks(one, notes):
            notes.attempt(settle)
    notes.whose = ""
    recipe = next(iter(runs.values()))
    if recipe.privacy.examples is not None:
        notes.attempt(needed)
    sets = [_read(entry.name, entry.sections, False, notes) for entry in recipe.clients]
    sets += [_read(entry.name, (entry.data,), True, notes) for entry in recipe.evaluation.sets]
    sizes = notes.attempt(partial(recipe_plan.architecture_of, recipe))
    tokenizer = None if sizes is None else notes.attempt(partial(_tokenizer, recipe, say))
    measured = {} if tokenizer is None else _measured(recipe, sets, tokenizer, rows, notes)
    prints = {_key(one): examples.fingerprints(one.examples) for one in sets if one.examples}
    table = [_row(one, measured.get(_key(one)), prints) for one in sets]
    _judge(recipe, table, notes)
    found: Record = {
        "recipe": recipe.name,
        "rows": rows,
        "sets": table,
        "plan": None,
        "memory": None,
        "training": None,
        "privacy": [],
        "example": _example(recipe, sets, tokenizer, notes) if example and tokenizer is not None else None,
    }
    if sizes is not None:
        setting = recipe_plan.setting_of(recipe, links, density)
        found["plan"] = notes.attempt(partial(recipe_plan.plan, runs, sizes, setting))
        found |= notes.attempt(partial(_on_this_machine, recipe, sizes, table, notes)) or {}
    found["privacy"] = _noise(recipe, table, notes)
    return {**found, "errors": notes.errors, "warnings": notes.warnings}


def _tokenizer(recipe: Recipe, say: Say) -> Any:
    from fedsrd.training import loading

    return loading.load_tokenizer(recipe.model.id, recipe.model.revision, say)


def _key(one: DataSet) -> str:
    return f"{'held-out ' if one.held_out else ''}{one.name}"


def _read(name: str, sections: tuple[DataSection, ...], held_out: bool, notes: Notes) -> DataSet:
    found: list[Example] | None = [] if sections else None
    for data in sections:
        # All sections are read, so that all that is wrong is said at once.
        owner = f"held-out set {name}" if held_out else name
        part = notes.attempt(partial(load_examples, data, owner, notes))
        found = None if part is None or found is None else found + part
    return DataSet(name, sections, found, held_out)


def _measured(recipe: Recipe, sets: list[DataSet], tokenizer: Any, rows: int, notes: Notes) -> dict[str, Lengths]:
    training, found = recipe.training, {}
    for one in sets:
        if one.examples:
            chosen = examples.sample(one.examples, rows, recipe.seed, _key(one))
            lengths = notes.attempt(partial(examples.lengths, chosen, training.prompt, tokenizer, training.max_length))
            if lengths is not None:
                found[_key(one)] = lengths
    return found


def _row(one: DataSet, lengths: Lengths | None, prints: Mapping[str, Fingerprints]) -> Record:
    own = prints.get(_key(one))
    return {
        "name": one.name,
        "held_out": one.held_out,
        "sources": [data.source for data in one.sections],
        "examples": None if one.examples is None else len(one.examples),
        "repeats": None if own is None else examples.repeats(own),
        "shared": {} if own is None else examples.shared(_key(one), prints),
        "tokens": None if lengths is None else asdict(lengths),
    }


def _judge(recipe: Recipe, table: list[Record], notes: Notes) -> None:
    """Warns of what makes a run worse."""
    training = recipe.training
    for row in table:
        whose = f"held-out set {row['name']}" if row["held_out"] else row["name"]
        count = row["examples"] or 0
        if row["examples"] is None and not row["sources"]:
            notes.warn(
                f"{whose}: has no data in this recipe: its own site names it (docs/deploy.md); `fedsrd run` needs all"
            )
        if tokens := row["tokens"]:
            _judge_lengths(whose, tokens, training.max_length, notes)
        if row["repeats"] and row["repeats"] > REPEATS * count:
            notes.warn(f"{whose}: {row['repeats']:,} of {count:,} examples are repeats of others of its own")
        overlap = {name: found for name, found in row["shared"].items() if name.startswith("held-out ")}
        if not row["held_out"] and overlap:
            most = max(overlap, key=lambda name: overlap[name])
            notes.warn(
                f"{whose}: {overlap[most]:,} of its examples are in {most.replace('held-out ', 'held-out set ', 1)}"
                + (" and others" if len(overlap) > 1 else "")
                + ": what is trained on says nothing about what is not; take them out of one of the two"
            )
        drawn = training.steps * training.batch_size * training.accumulation
        if not row["held_out"] and count and drawn > EPOCHS * count:
            notes.warn(
                f"{whose}: a round draws {drawn:,} examples of its {count:,}, each {drawn / count:.3g} times; take "
                "fewer steps (training.steps)"
            )
        asked = recipe.privacy.examples
        if not row["held_out"] and asked is not None and count and asked.delta * count >= 1:
            notes.warn(
                f"{whose}: privacy.examples.delta = {asked.delta:g} is no less than 1/{count:,}: one example might be "
                "told whole; choose less than a tenth of that"
            )
    if not recipe.evaluation.sets:
        notes.warn("no held-out set: how good the adapter is will not be measured; add [[evaluation.sets]]")


def _judge_lengths(whose: str, tokens: Record, longest: int, notes: Notes) -> None:
    wrong = []
    for what, cut, most, means in (
        ("responses", tokens["responses_cut"], RESPONSES, "the model does not learn where they end"),
        ("prompts", tokens["prompts_cut"], PROMPTS, "their begin is left out"),
    ):
        if cut > most * tokens["measured"]:
            wrong.append(f"{cut / tokens['measured']:.0%} of the {what} are cut ({means})")
    if wrong:
        notes.warn(
            f"{whose}: {' and '.join(wrong)} at training.max_length = {longest}; 95 % of the examples fit in "
            f"{tokens['high']:,}"
        )


def _example(recipe: Recipe, sets: list[DataSet], tokenizer: Any, notes: Notes) -> Record | None:
    one = next((one for one in sets if one.examples and not one.held_out), None)
    if one is None or not one.examples:
        return None
    chosen = examples.sample(one.examples, 1, recipe.seed, "rendered", one.name)[0]
    training = recipe.training
    parts = notes.attempt(partial(examples.rendered, chosen, training.prompt, tokenizer, training.max_length))
    return None if parts is None else {"name": one.name, "parts": [asdict(part) for part in parts]}


def _noise(recipe: Recipe, table: list[Record], notes: Notes) -> list[Record]:
    """The noise with which each client trains under differential privacy of examples, for the epsilon asked for."""
    asked, training = recipe.privacy.examples, recipe.training
    if asked is None or asked.epsilon is None or any("needs the package" in error for error in notes.errors):
        return []
    found = []
    for row in table:
        if row["examples"] and not row["held_out"]:
            rate = min(1.0, training.batch_size * training.accumulation / row["examples"])
            terms = notes.attempt(partial(agreed, asked, None, rate, recipe.rounds * training.steps))
            if terms is not None:
                found.append({"name": row["name"], "noise_multiplier": terms.noise_multiplier})
    return found


def _on_this_machine(recipe: Recipe, sizes: Architecture, table: list[Record], notes: Notes) -> Record:
    """Memory and time of `fedsrd run`, all of it on this machine's device."""
    import torch

    from fedsrd.training import loading

    training, model = recipe.training, recipe.model
    device = loading.pick_device(model.device)
    lanes = min(training.clients_at_once, len(recipe.clients))
    used = memory.client(
        sizes,
        model.dtype if model.quantization == "none" else recipe_plan.NF4,
        training.batch_size * lanes,
        training.max_length,
        checkpointing=model.gradient_checkpointing,
        by_example=recipe.privacy.examples is not None,
    )
    has = machine.memory_of(device)
    kind = "GPU" if device.type == "cuda" else "CPU"
    if has is not None and used.total > FULL * has:
        notes.warn(
            f"training needs about {used.total / 2**30:.1f} GiB, and this machine's {kind} has {has / 2**30:.1f}; take "
            "a smaller training.batch_size (and more accumulation), model.gradient_checkpointing = true, a shorter "
            'training.max_length, or model.quantization = "nf4"'
        )
    found: Record = {"memory": {**asdict(used), "total": used.total, "device": str(device), "has": has}}
    lengths = [row["tokens"]["mean"] for row in table if row["tokens"] and not row["held_out"]]
    if not lengths:
        return found
    speed = machine.flops(device, getattr(torch, model.dtype), training.batch_size * training.max_length, sizes.hidden)
    tokens = training.steps * training.batch_size * training.accumulation * sum(lengths) / len(lengths)
    each = machine.training_seconds(sizes.parameters, tokens, speed, checkpointing=model.gradient_checkpointing)
    asked = share(len(recipe.clients), recipe.participation.fraction, recipe.participation.minimum)
    return {
        **found,
        "training": {
            "device": str(device),
            "tokens_a_client_and_round": round(tokens),
            "seconds_a_client_and_round": each,
            "seconds_in_one_process": each * asked * recipe.rounds,
        },
    }

"""What a run in one process works with: the model that is lent to each client in turn, and everybody's data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedsrd.core.tensors import BaseDelta, Tensors
from fedsrd.data.examples import Example
from fedsrd.data.prompt import Encoded, encode
from fedsrd.errors import DataError
from fedsrd.privacy.ledger import Ledger
from fedsrd.privacy.options import SitePrivacy
from fedsrd.privacy.stream import public
from fedsrd.privacy.terms import agreed
from fedsrd.recipe import DataSection, Recipe
from fedsrd.runs.records import RoundRecord

if TYPE_CHECKING:
    from fedsrd.evaluation.nll import Likelihood

EMBEDDED = "embedded:"
SAMPLE_TOKENS = 64
"""Of an answer that is generated for the report."""


class Observer(Protocol):
    """Who is told how a run goes; a terminal display, a tracker, or nobody."""

    def say(self, text: str) -> None:
        """Something happens that takes a while, or that the user should know."""

    def warn(self, text: str) -> None:
        """Something went wrong that does not end the run."""

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """Within a round: `what` (a client, or evaluation) stands at `done` of `total`."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is complete and on the disk."""


@dataclass(frozen=True)
class Privacy:
    """Where a process keeps what differential privacy of examples needs, and whose word goes there.

    Attributes:
        folder: of a client's ledger, by its name.
        secret: where noise and sampling come from, by that folder.
        run: the run's name in the ledgers.
        site: the site's own rules; None: the recipe alone decides.
    """

    folder: Callable[[str], Path]
    secret: Callable[[Path], bytes]
    run: str
    site: SitePrivacy | None = None

    @classmethod
    def of_run(cls, recipe: Recipe, folder: Path) -> "Privacy":
        """Of clients that live in one process with the server, where there is nobody to hide noise from: it follows
        from the recipe's seed, so that the run repeats itself.
        """
        return cls(lambda name: folder / "privacy" / name, lambda _: public(recipe.seed), "run")


class Assets:
    """Models, encoded data and base models' quality, kept for the next run of the process that wants the same."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def get(self, make: Any, *key: object) -> Any:
        """What `make()` gives, or gave when it was called for an equal key."""
        name = repr(key)
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


class Session:
    """The model and the data of a local run, and who watches it."""

    def __init__(
        self, recipe: Recipe, lora: Any, observer: Observer, assets: Assets, privacy: Privacy | None = None
    ) -> None:
        from fedsrd.training.models import AdaptedModel

        self.recipe = recipe
        self.observer = observer
        self._lora = lora
        self._assets = assets
        self._privacy = privacy
        # Data first: a client without examples must show before weights are read.
        train = {
            entry.name: [e for data in entry.sections for e in self._examples(data, entry.name)]
            for entry in recipe.clients
        }
        tests = {
            entry.name: self._examples(entry.data, entry.name)[: recipe.evaluation.examples]
            for entry in recipe.evaluation.sets
        }

        self.adapted: AdaptedModel = assets.get(self._load, "model", recipe.model, recipe.lora)
        self._train = {
            entry.name: assets.get(
                lambda name=entry.name: self._encoded(train[name]), "encoded", entry.sections, *self._prompt
            )
            for entry in recipe.clients
        }
        self._asked = {name: examples[: recipe.evaluation.samples] for name, examples in tests.items()}
        self._tests = {name: self._encoded(examples) for name, examples in tests.items()}

    def _load(self) -> Any:
        from fedsrd.training.models import AdaptedModel

        model = self.recipe.model
        self.observer.say(f"Loading {model.id}")
        return AdaptedModel.load(model.id, self._lora, model, say=self.observer.say)

    def trainers(self, pool: str | None = None) -> dict[str, Any]:
        """One trainer a client by name, in the recipe's order, all with the same model.

        Args:
            pool: the name of one trainer that has all data, in the place of the clients'; None for the clients'.

        Raises:
            PrivacyError: differential privacy of examples is asked for and cannot be had.
        """
        from fedsrd.training.sft import PooledTrainer

        each = {name: self._trainer(name, examples) for name, examples in self._train.items()}
        return each if pool is None else {pool: PooledTrainer(list(each.values()), pool)}

    def _trainer(self, name: str, examples: Sequence[Encoded]) -> Any:
        from fedsrd.training import private
        from fedsrd.training.sft import LocalTrainer

        recipe, asked = self.recipe, self.recipe.privacy.examples
        whose = self._privacy or Privacy.of_run(recipe, Path())
        rate = private.sampling_rate(recipe.training, max(len(examples), 1))
        terms = agreed(asked, whose.site, rate, recipe.rounds * recipe.training.steps)
        if terms is None:
            return LocalTrainer(self.adapted, examples, recipe.training, name, recipe.seed, recipe.rounds)
        if self._privacy is None:
            raise ValueError("differential privacy of examples needs a place for its ledgers")
        folder = whose.folder(name)
        ledger = Ledger(folder, whose.run, terms.delta, run_epsilon=terms.run_epsilon, limits=whose.site)
        self.observer.say(f"{name}: {ledger.standing(terms.noise_multiplier, rate)}")
        how = private.Privacy(terms.noise_multiplier, terms.clip, whose.secret(folder), ledger, terms.tell_loss)
        return private.PrivateTrainer(self.adapted, examples, recipe.training, name, recipe.seed, how, recipe.rounds)

    def evaluates(self, round_number: int) -> bool:
        """Whether quality is measured after this round (0: before the first)."""
        every = self.recipe.evaluation.every
        return round_number in (0, self.recipe.rounds) or bool(every and round_number % every == 0)

    def quality(self, round_number: int, tensors: Tensors, base: BaseDelta) -> "dict[str, Likelihood]":
        """Response NLL by set of a model with these tensors and this change of its frozen weights."""
        from fedsrd.evaluation.nll import evaluate

        evaluation = self.recipe.evaluation
        done = iter(range(len(self._tests)))

        def on_set(name: str) -> None:
            self.observer.activity(round_number, "evaluation", next(done), len(self._tests), name)

        def measure() -> "dict[str, Likelihood]":
            self.adapted.set_tensors(tensors, base)
            return evaluate(self.adapted, self._tests, evaluation.batch_size, on_set)

        if round_number == 0:
            # B is zero before the first round, whatever A is: the base model's quality.
            found: dict[str, Likelihood] = self._assets.get(
                measure, "base", self.recipe.model, evaluation, *self._prompt
            )
            return dict(found)
        return measure()

    def record(self, round_number: int, tensors: Tensors, base: BaseDelta) -> dict[str, Any]:
        """What a round's record says of the quality of one global model: "eval" and its errors, and "benchmarks" before
        and after.
        """
        if not self.evaluates(round_number):
            return {"eval": {}}
        measured = self.quality(round_number, tensors, base)
        found: dict[str, Any] = {
            "eval": {name: one.mean for name, one in measured.items()},
            "eval_stderr": {name: one.stderr for name, one in measured.items() if one.stderr is not None},
        }
        if round_number in (0, self.recipe.rounds):
            if self.recipe.evaluation.benchmarks:
                found["benchmarks"] = self._benchmarks(round_number, tensors, base)
            if self.recipe.evaluation.samples and self._asked:
                self.observer.activity(round_number, "samples", 0, len(self._asked))
                found["samples"] = self._samples(round_number, tensors, base)
        return found

    def _samples(self, round_number: int, tensors: Tensors, base: BaseDelta) -> dict[str, list[dict[str, str]]]:
        """The model's greedy answers to the first held-out prompts of every set."""
        if round_number:
            return self._answered(tensors, base)
        key = ("base answers", self.recipe.model, self.recipe.evaluation, *self._prompt)
        found: dict[str, list[dict[str, str]]] = self._assets.get(partial(self._answered, tensors, base), *key)
        return found

    def _answered(self, tensors: Tensors, base: BaseDelta) -> dict[str, list[dict[str, str]]]:
        from fedsrd.data.prompt import prompt_ids
        from fedsrd.evaluation import exact

        self.adapted.set_tensors(tensors, base)
        tokenizer, style = self.adapted.tokenizer, self.recipe.training.prompt
        flat = [(name, example) for name, examples in self._asked.items() for example in examples]
        prompts = [prompt_ids(example, style, tokenizer) for _, example in flat]
        answers = exact.generate(self.adapted, prompts, SAMPLE_TOKENS, len(prompts))
        found: dict[str, list[dict[str, str]]] = {}
        for (name, example), answer in zip(flat, answers, strict=True):
            row = {"prompt": example.instruction, "wanted": example.response, "answer": answer}
            found.setdefault(name, []).append(row)
        return found

    def _benchmarks(self, round_number: int, tensors: Tensors, base: BaseDelta) -> dict[str, Any]:
        """Each benchmark's row in lm-eval's form. The base model's are kept on the disk for the next run."""
        from fedsrd.evaluation import cache, embedded

        evaluation, training = self.recipe.evaluation, self.recipe.training
        names = evaluation.benchmarks
        self.adapted.set_tensors(tensors, base)
        rows = {}
        for place, name in enumerate(names):
            self.observer.activity(round_number, "benchmarks", place, len(names), name)
            what = embedded.Setting(
                training.prompt, training.max_length, evaluation.batch_size, evaluation.benchmark_examples
            )
            measure = partial(embedded.measure, self.adapted, embedded.named(name), what, self.observer.say)
            if round_number:
                rows[name] = measure()
                continue
            model = self.recipe.model
            weights = cache.model_identity(model.id, model.revision)
            key = cache.key(embedded.VERSION, weights, name, what, model, self.adapted.device.type)
            rows[name] = cache.kept(key, measure)
        return rows

    def on_step(self, round_number: int, client: str) -> Any:
        """A callback that shows a client's progress."""
        steps = self.recipe.training.steps

        def show(step: int, loss: float) -> None:
            self.observer.activity(round_number, client, step, steps, f"loss {loss:.3f}")

        return show

    @property
    def _prompt(self) -> tuple[object, ...]:
        training = self.recipe.training
        return self.recipe.model.id, self.recipe.model.revision, training.prompt, training.max_length

    def _examples(self, data: DataSection, owner: str) -> list[Example]:
        found: list[Example] = self._assets.get(lambda: load_examples(data, owner, self.observer), "examples", data)
        return found

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        training = self.recipe.training
        return [encode(e, training.prompt, self.adapted.tokenizer, training.max_length) for e in examples]


def load_examples(data: DataSection, owner: str, observer: Observer) -> list[Example]:
    """The examples of one data section.

    Raises:
        DataError: they cannot be read, or there are none; the message names `owner`.
    """
    from fedsrd.data import catalog, local

    try:
        if data.source.startswith(EMBEDDED):
            examples = catalog.load(data.source.removeprefix(EMBEDDED), _split(data), observer.say)[: data.limit]
        else:
            examples = local.load_local(
                data.source, split=data.split, columns=data.columns, template=data.template, limit=data.limit
            )
    except DataError as error:
        raise DataError(f"{owner}: {error}") from None
    except OSError as error:
        raise DataError(f"{owner}: {data.source} cannot be read: {error.strerror or error}") from None
    if not examples:
        raise DataError(f"{owner}: {data.source} has no examples in split {data.split!r}; every client needs one")
    return examples


def check_data(data: DataSection, owner: str) -> None:
    """Finds what is wrong with a data section without reading all of it. Raises DataError, naming `owner`."""
    from fedsrd.data import catalog, local

    try:
        if data.source.startswith(EMBEDDED):
            catalog.get(data.source.removeprefix(EMBEDDED), _split(data))
        else:
            local.check_local(data.source, split=data.split, columns=data.columns, template=data.template)
    except DataError as error:
        raise DataError(f"{owner}: {error}") from None
    except OSError as error:
        raise DataError(f"{owner}: {data.source} cannot be read: {error.strerror or error}") from None


def _split(data: DataSection) -> Any:
    if data.split not in ("train", "test"):
        raise DataError(f"{data.source} has splits 'train' and 'test', not {data.split!r}")
    return data.split

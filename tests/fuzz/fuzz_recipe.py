"""Fuzzing of recipes: whatever stands in the file, it is a recipe or a RecipeError says why not.

What is read must come back from what it is written as, with the same meaning.
"""

import contextlib
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import atheris
import harness
import tomli_w

with atheris.instrument_imports(include=["fedsrd.recipe", "fedsrd.suggest", "fedsrd.methods"]):
    import fedsrd.compare.plan as plan
    from fedsrd import recipe
    from fedsrd.errors import FedSRDError, RecipeError

FILE = Path("/dev/shm") / "fedsrd-fuzz.toml"


def one_input(data: bytes) -> None:
    """Reads it as a recipe, as changes of one, and as a comparison."""
    FILE.write_bytes(data)
    try:
        found = recipe.load(FILE)
    except RecipeError:
        found = None
    if found is not None:
        again = recipe.parse(tomllib.loads(found.to_toml({})))
        assert again.resolved() == found.resolved()
    with contextlib.suppress(RecipeError):
        recipe.load(None, [data.decode("utf-8", "replace")])
    with contextlib.suppress(FedSRDError):
        plan.load(FILE)


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """A key of the recipe changed, or any byte."""
    if seed % 3:
        try:
            return tomli_w.dumps(harness.mutated(tomllib.loads(data.decode()), seed)).encode()[:size]
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
    return bytes(atheris.Mutate(data, size))


def seeds() -> Iterable[tuple[str, bytes]]:
    """The embedded recipe, recipes of methods, a comparison."""
    embedded = resources.files("fedsrd").joinpath("recipes/embedded.toml").read_text(encoding="utf-8")
    yield "embedded", embedded.encode()
    small = 'model.id = "a/b"\nclients = [{ name = "a" }, { name = "b", rank = 2 }]\n'
    yield "small", small.encode()
    for method in ("fedsrd", "fedavg", "flasc", "scaffold", "fed-dare"):
        yield method, f'{small}method = {{ name = "{method}" }}\nserver_optimizer = {{ name = "adam" }}\n'.encode()
    yield "compare", f'{small}[compare]\nmethods = ["fedsrd", "fedavg"]\nseeds = [0, 1]\n'.encode()
    yield "override", b"training.steps=8"


if __name__ == "__main__":
    harness.run("recipe", one_input, seeds, mutate)

"""The known methods, by name."""

from fedsrd.errors import RecipeError
from fedsrd.methods.method import Method
from fedsrd.suggest import did_you_mean
from fedsrd.text import foreign

_REGISTRY: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: makes a method known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in _REGISTRY:
        raise ValueError(f"two methods are called {method.name!r}")
    _REGISTRY[method.name] = method
    return method


def names() -> list[str]:
    """The known methods' names, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        RecipeError: there is none; the message names the nearest and all known ones.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    hint = did_you_mean(name, _REGISTRY)
    raise RecipeError(f"method.name = {foreign(name, 100)!r}: no such method.{hint} Known: {', '.join(names())}.")

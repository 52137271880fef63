"""The recipes that come with the package: found by name wherever `fedsrd` runs, listed, and copied to be changed."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

FOLDER = Path(str(resources.files("fedsrd"))) / "recipes"


@dataclass(frozen=True)
class Shipped:
    """One recipe of the package.

    Attributes:
        name: such as "models/qwen3-1.7b".
        about: what its first comment says, on one line.
        command: of fedsrd that takes it: "run", or "compare" for a recipe with a [compare] table.
    """

    name: str
    about: str
    command: str


def names() -> list[str]:
    """All of them, those of the package's own folder first."""
    found = [file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.toml")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def find(path: Path) -> Path | None:
    """The package's recipe that a path names where no such file exists: "embedded/main", with or without ".toml" at its
    end and "recipes/" before it. None where a file is there, or no recipe has that name.
    """
    try:
        if path.exists():
            return None
    except (OSError, ValueError):  # no path at all: whoever reads it says so
        return None
    name = path.as_posix().removeprefix("recipes/").removesuffix(".toml")
    return FOLDER / f"{name}.toml" if name in names() else None


def described() -> list[Shipped]:
    """What there is. Recipes that only others extend ("base") are left out."""
    return [_describe(name) for name in names() if not name.rpartition("/")[2].startswith("base")]


def text(name: str) -> str:
    """The recipe as it stands in the package; KeyError where there is none of that name."""
    return file(name).read_text(encoding="utf-8")


def file(name: str) -> Path:
    """Where the recipe of that name lies; KeyError where there is none."""
    name = name.removeprefix("recipes/").removesuffix(".toml")
    if name not in names():
        raise KeyError(name)
    return FOLDER / f"{name}.toml"


def _describe(name: str) -> Shipped:
    own = text(name)
    about = " ".join(line.removeprefix("#").strip() for line in comment(own).splitlines())
    sentence = about.partition(". ")[0].removesuffix(":").removesuffix(".")
    return Shipped(name, sentence, "compare" if "compare" in tomllib.loads(own) else "run")


def comment(own: str) -> str:
    """A recipe's first comment."""
    lines = own.splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])

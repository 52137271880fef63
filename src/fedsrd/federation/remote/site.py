"""What a site decides for itself: its name, its data, and where its state lies. The server has no say in it."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedsrd import toml
from fedsrd.errors import DataError, PayloadError
from fedsrd.explain import in_words
from fedsrd.federation.secure_client import peers_of
from fedsrd.federation.session import EMBEDDED
from fedsrd.privacy.options import SitePrivacy
from fedsrd.recipe import DataSection, Name
from fedsrd.text import foreign

KEYS = ("client", "data", "state", "key", "peers", "rules", "import", "partition-id", "num-partitions")


@dataclass(frozen=True)
class Site:
    """One client's own settings.

    Attributes:
        name: what the server and the records call it.
        data: its own; empty: what the recipe says, as far as that is allowed.
        state: folder of what it keeps between rounds.
        simulated: whether it lives in a simulation, where the recipe is the user's own.
        key: the file of its private key (`identity`), if it has one.
        privacy: what its data may ever give away, if it says so.
        peers: the other sites' public keys by name, which they have agreed on; None: it knows none.
        run: the federation that asks; "" where nobody does.
    """

    name: str
    data: tuple[DataSection, ...]
    state: Path
    simulated: bool
    key: Path | None = None
    privacy: SitePrivacy | None = None
    peers: Mapping[str, str] | None = None
    run: str = ""

    def sections(self, recipes: Sequence[DataSection]) -> list[DataSection]:
        """Its data: its own setting, else the recipe's.

        Raises:
            DataError: there is neither, or the recipe's is a place on this site's disk or a hub, which a server must
                not choose.
        """
        if self.data:
            return list(self.data)
        if not recipes:
            raise DataError(f"client {self.name} has no data: start its SuperNode with --node-config 'data=\"PATH\"'")
        for section in recipes:
            if not self.simulated and not section.source.startswith(EMBEDDED):
                raise DataError(
                    f"client {self.name}: the server's recipe names data here ({section.source}), which only the site "
                    "itself may; start its SuperNode with --node-config 'data=\"PATH\"'"
                )
        return list(recipes)


def site_of(
    config: Mapping[str, Any], names: Sequence[str] = (), asked: str | None = None, *, strict: bool = True
) -> Site:
    """The site of a SuperNode's node config.

    Args:
        config: `client` (its name), `data` (a file or folder, or a TOML file with a [data] table, or several [[data]]),
            `state` (`state_of`), `key` (the file of its private key), `rules` (read by `gate`), `peers` (a TOML file
            with a [peers] table: the sites' public keys by name),
            `import` (a module with methods).
            A simulation gives `partition-id` instead.
        names: the recipe's clients, which `partition-id` counts; empty: there is no recipe.
        asked: the name that a message is for, once the server knows it.
        strict: whether other keys are refused.

    Raises:
        DataError: a key is unknown, a name or a data file is wrong, or there is neither `client` nor `partition-id`.
        PayloadError: the message is for somebody else.
    """
    simulated = "client" not in config and is_simulation()
    unknown = [key for key in config if key not in KEYS]
    if unknown and strict:
        raise DataError(f"--node-config has {unknown[0]!r}, which means nothing here; known keys: {', '.join(KEYS)}")
    if "client" in config:
        try:
            name = TypeAdapter(Name).validate_python(config["client"])
        except ValidationError:
            raise DataError(
                f"--node-config client={config['client']!r}: expected up to 64 letters, digits, dots, dashes and "
                "underscores"
            ) from None
        if asked not in (None, name):
            raise PayloadError(f"a message for client {asked}, but this is {name}")
    elif asked is not None:
        name = asked
    elif "partition-id" in config:
        place = int(config["partition-id"])
        if names and not 0 <= place < len(names):
            raise DataError(f"partition-id = {place}: the recipe has {len(names)} clients")
        name = names[place] if names else f"client-{place}"
    else:
        raise DataError('the SuperNode has no name: start it with --node-config \'client="NAME" data="PATH"\'')
    data = config.get("data")
    key = Path(os.path.expanduser(str(config["key"]))) if "key" in config else None
    peers = _peers(str(config["peers"])) if "peers" in config else None
    return Site(name, () if data is None else _sections(str(data)), state_of(config), simulated, key, peers=peers)


def state_of(config: Mapping[str, Any]) -> Path:
    """The folder of what a site keeps: `state` of its node config, else $FEDSRD_STATE, else ~/.local/state/fedsrd."""
    default = os.environ.get("FEDSRD_STATE") or Path.home() / ".local" / "state" / "fedsrd"
    # Path.expanduser raises where there is no such user.
    return Path(os.path.expanduser(str(config.get("state", default))))


def is_simulation() -> bool:
    """Whether this process belongs to Flower's simulation (a Ray worker)."""
    # The module may be there and not yet whole, while another thread imports it.
    initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return initialized is not None and bool(initialized())


def _peers(source: str) -> dict[str, str]:
    path = Path(os.path.expanduser(source))
    try:
        return peers_of(toml.load(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the peers file {path}: {reason}; nothing is sent") from None


def _sections(source: str) -> tuple[DataSection, ...]:
    path = Path(os.path.expanduser(source))
    if path.suffix != ".toml":
        return (DataSection(source=source),)
    try:
        tree = toml.load(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as TOML: {getattr(error, 'strerror', None) or error}") from None
    found = tree.get("data")
    try:
        sections = [DataSection.model_validate(entry) for entry in (found if isinstance(found, list) else [found])]
    except ValidationError as error:
        problem = error.errors()[0]
        where = foreign(".".join(str(part) for part in ("data", *problem["loc"])), 100)
        raise DataError(f'{path}: {where}: {in_words(problem)}; expected [data] with source = "PATH"') from None
    return tuple(sections)

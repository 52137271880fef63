"""Which rounds a recipe asks for: plain, of integers, or masked."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedsrd.federation.rounds import Engine, Rounds
from fedsrd.federation.secure_messages import verifier
from fedsrd.federation.secure_rounds import Journal, SecureRounds
from fedsrd.federation.server import Server
from fedsrd.federation.sum_rounds import SumRounds
from fedsrd.recipe import Recipe


def rounds_of(
    recipe: Recipe,
    server: Server,
    engine: Engine,
    warn: Callable[[str], None],
    *,
    federation: str,
    keys: Mapping[str, str] | None = None,
    journal: Path | None = None,
) -> Rounds:
    """The rounds of a recipe.

    Args:
        recipe: the recipe.
        server: its server.
        engine: what carries the bytes.
        warn: told what went wrong without ending the run.
        federation: the run, as clients tell it from others.
        keys: clients' public keys by name.
        journal: the file of a session of secure aggregation that is about to be unmasked; None keeps none.
    """
    asked, seed = recipe.participation, recipe.seed
    if recipe.privacy.secure_aggregation is not None:
        found = dict(keys or {})
        return SecureRounds(
            server,
            engine,
            asked,
            seed,
            warn,
            federation=federation,
            threshold=recipe.privacy.secure_aggregation.threshold,
            keys=found,
            verify=verifier(found) if found else None,
            journal=Journal(journal),
        )
    kind = Rounds if server.config.sum is None else SumRounds
    return kind(server, engine, asked, seed, warn)

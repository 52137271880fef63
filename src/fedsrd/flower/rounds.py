"""A strategy's rounds: as many clients as FedAvg asks, and as many as FedAvg waits for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import getLogger

from fedsrd.errors import FederationError
from fedsrd.federation.rounds import Rounds
from fedsrd.federation.sampling import choose
from fedsrd.flower.engine import HELLO_SECONDS, FlowerEngine
from fedsrd.flower.options import StrategyOptions

LOGGER = getLogger("flwr")
PAUSE = 1.0
"""Seconds between looks at who is there; Flower's own."""
TOLD_EVERY = 30.0
MOST_TOLD = 4


@dataclass(kw_only=True)
class StrategyRounds(Rounds):
    """`Rounds` with FedAvg's sampling: the share of the clients rounded down, but at least so many, for whom it waits.

    Args:
        engine: what carries the bytes.
        options: the strategy's.
    """

    engine: FlowerEngine = field()
    options: StrategyOptions
    _met: bool = False

    def wanted(self, count: int) -> int:
        """How many of so many clients are asked in a round."""
        return _share(count, self.options.fraction_train, self.options.min_train_nodes)

    def evaluators(self, round_number: int) -> list[str]:
        """The clients that evaluate after a round: a choice that follows from seed and round alone."""
        options = self.options
        if not options.fraction_evaluate:
            return []
        names = self.joined(options.needed_to_evaluate)
        wanted = _share(len(names), options.fraction_evaluate, options.min_evaluate_nodes)
        return choose(names, wanted, self.seed, round_number, -1)

    def names(self, *, wait: bool = True) -> Sequence[str]:
        """The clients within reach; with `wait`, once there are enough."""
        return self.joined(self.options.needed) if wait else super().names(wait=False)

    def joined(self, needed: int) -> Sequence[str]:
        """The clients within reach, once there are so many: as FedAvg, it waits as long as that takes.

        Raises:
            FederationError: at the start, so many nodes are there, and too few of them can take part; with the reasons.
        """
        told, again = 0.0, True
        while True:
            found = self.engine.look(HELLO_SECONDS, again=again)
            self.take_reports()
            if len(found) >= needed:
                self._met = True
                return found
            turned = self.engine.turned_away()
            if not self._met and self.engine.open and len(found) + len(turned) >= needed:
                shown = "; ".join(turned[:MOST_TOLD])
                raise FederationError(
                    f"{len(found)} of at least {needed} clients can take part (min_available_nodes, min_train_nodes): "
                    f"{shown}"
                )
            again = time.monotonic() - told >= TOLD_EVERY
            if again:
                told = time.monotonic()
                LOGGER.info("Waiting for clients to connect: %d of at least %d have joined", len(found), needed)
            time.sleep(PAUSE)


def _share(count: int, fraction: float, minimum: int) -> int:
    """FedAvg's number of clients, or all.

    >>> _share(5, 0.5, 2), _share(100, 0.29, 2), _share(3, 0.1, 2), _share(1, 1.0, 2)
    (2, 28, 2, 1)
    """
    return min(max(int(count * fraction), minimum), count)

"""What clients have missed: broadcasts by version, who holds which version, and whose update counted when. Bounded.

A client that misses rounds cannot use the next broadcast alone. The paper has no answer; ours: states carry a version,
and who comes back gets exactly the broadcasts between its version and the newest, or the whole state where that is
smaller.
"""

from collections.abc import Iterable, Mapping

from fedsrd.federation.messages import MOST_BROADCASTS, Broadcast


class Ledger:
    """Broadcasts that somebody may still need.

    Attributes:
        known: the version that each client is known to hold.
        counted: the last round in which each client's update was aggregated.
    """

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self._broadcasts: dict[int, Broadcast] = {}

    def __len__(self) -> int:
        return len(self._broadcasts)

    @property
    def size(self) -> int:
        """Bytes of all payloads that are kept."""
        return sum(len(broadcast.payload) for broadcast in self._broadcasts.values())

    def append(self, broadcast: Broadcast, counted: Iterable[str]) -> None:
        """Keeps a round's broadcast, and whose updates are in it."""
        self._broadcasts[broadcast.version] = broadcast
        self.counted.update(dict.fromkeys(counted, broadcast.round))

    def since(self, version: int, newest: int) -> tuple[Broadcast, ...] | None:
        """The broadcasts that lead from one version to the newest, in order; None where one of them is gone, or
        they are too many for one message.
        """
        wanted = range(version + 1, newest + 1)
        if len(wanted) > MOST_BROADCASTS or not all(number in self._broadcasts for number in wanted):
            return None
        return tuple(self._broadcasts[number] for number in wanted)

    def prune(self, limit: int) -> None:
        """Forgets what every known client holds, and the oldest beyond `limit` bytes, about a whole state's length: who
        is further behind gets that.
        """
        oldest = min(self.known.values(), default=0)
        for version in sorted(self._broadcasts):
            if version <= oldest or self.size > limit:
                del self._broadcasts[version]

    def contents(self) -> tuple[Broadcast, ...]:
        """Everything that is kept, for a checkpoint."""
        return tuple(self._broadcasts[version] for version in sorted(self._broadcasts))

    def restore(self, broadcasts: tuple[Broadcast, ...], known: Mapping[str, int], counted: Mapping[str, int]) -> None:
        """Takes a checkpoint's contents."""
        self._broadcasts = {broadcast.version: broadcast for broadcast in broadcasts}
        self.known, self.counted = dict(known), dict(counted)

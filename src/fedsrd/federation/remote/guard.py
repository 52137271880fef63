"""A client whose server is somebody else's: what the server's numbers may cost is bounded by what the client knows.

Most sizes follow from the tensor table alone, which the client derives from its own model, and a snapshot brings at
least three bytes an element (`wire`). What is left is bounded here: broadcasts whose shapes grow with a number of the
server's, and everything where even the table is the server's word.
"""

from collections.abc import Callable

from fedsrd.core.tensors import TensorTable
from fedsrd.errors import PayloadError
from fedsrd.federation import snapshot
from fedsrd.federation.client import Client, Masking, Trainer
from fedsrd.federation.messages import Broadcast, Start
from fedsrd.federation.sum_codec import Secret
from fedsrd.federation.transition import FederationConfig

OWN = 4
"""A broadcast may hold so many times the elements of the client's own state..."""
PER_BYTE = 64
"""...and so many for each byte that came: an eighth of a bit an element, when rounded values take one at least. An
honest broadcast beyond that (hundreds of clients that changed nothing) is refused like any other, and the server sends
the whole state instead."""


class GuardedClient(Client):
    """`Client`, with these bounds.

    Args:
        knows_model: whether the table comes from the client's own model, and not from the server.
        masking: as in `Client`.
        secret: likewise.
    """

    def __init__(
        self,
        name: str,
        config: FederationConfig,
        trainer: Trainer,
        rank: int | None = None,
        *,
        knows_model: bool = True,
        masking: Masking | None = None,
        secret: Callable[[int], Secret] | None = None,
    ) -> None:
        super().__init__(name, config, trainer, rank, masking=masking, secret=secret)
        self._knows_model = knows_model
        self._own = _elements(config)

    def start(self, message: Start) -> None:
        """As `Client.start`.

        Raises:
            PayloadError: as there; or the shapes are the server's word, and a start is a few bytes for any shapes.
        """
        if not self._knows_model:
            raise PayloadError(
                f"client {self.name}: a start, which a few bytes expand to the server's {self._own} elements: expected "
                "the whole state"
            )
        super().start(message)

    def _advance(self, message: Broadcast) -> str:
        held = {name: tuple(tensor.shape) for name, tensor in self.state.tensors.items()}
        if held != self._config.state_table.shapes:
            raise PayloadError(f"client {self.name}: a broadcast for other tensors than those of the state held here")
        most = OWN * self._own + PER_BYTE * len(message.payload)
        elements = self._config.downlink_table(message.clients).elements
        if elements > most:
            raise PayloadError(
                f"client {self.name}: a broadcast of {message.clients} updates in {len(message.payload)} bytes, with "
                f"{elements} elements: expected at most {most}, {OWN} times this client's own {self._own} and "
                f"{PER_BYTE} a byte"
            )
        return super()._advance(message)


def _elements(config: FederationConfig) -> int:
    """How many numbers the client holds."""
    tables: list[TensorTable] = [config.state_table]
    if config.method.changes_base:
        tables.append(snapshot.base_table(config.state_table))
    return sum(table.elements for table in tables)

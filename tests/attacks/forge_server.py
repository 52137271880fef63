"""What the programs of hostile servers share: a client that has joined, and what it makes of a message.

Their `strike` sends one message to a client as it is at a site (`federation.remote.guard`); it must be refused, at
once, and at no more cost than a few times what came and what the client holds.
"""

import re
import sys

from fedsrd import methods, wire
from fedsrd.core.lora import LoraModule, table_of
from fedsrd.core.tensors import GlobalState, initial_tensors
from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Start
from fedsrd.federation.remote.guard import GuardedClient
from fedsrd.federation.transition import FederationConfig

TABLE = table_of([LoraModule("q", 30, 50, 2), LoraModule("v", 20, 90, 2)])


def client(name: str, table=TABLE, *, version=0, knows_model=True) -> GuardedClient:
    """A client of this method; with the common start as this version; with None it has joined only."""
    kind = methods.get(name)
    config = FederationConfig(kind(kind.Options()), table, 0)
    made = GuardedClient("victim", config, None, knows_model=knows_model)
    if version is not None:
        made.restore(GlobalState(initial_tensors(config.state_table, 0), {}, version))
    return made


def start(table=TABLE) -> Start:
    """The start of these tensors."""
    return Start(wire.encode_start(0, table), "0" * 64)


def refused(strike, message: str) -> str:
    """The refusal. Raises AssertionError when the message is taken, or refused for another reason."""
    try:
        strike()
    except PayloadError as error:
        reason = str(error)
    else:
        raise AssertionError("the message was taken")
    assert re.search(message, reason), f"refused, but not for this: {reason}"
    return reason


def show(attack: str, strike, message: str) -> None:
    """For the programs' main: one line."""
    sys.stdout.write(f"{attack}: refused: {refused(strike, message)}\n")

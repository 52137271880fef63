"""Secure aggregation: the server learns the sum of the clients' integers and nothing else of them.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017, ePrint 2017/281),
with the confirmation of one set of survivors against a server that deviates (their round 3); from 32 clients on
neighbourhoods instead of all pairs (Bell et al., CCS 2020, ePrint 2020/704). Both sides are state machines that know no
transport: `Client` and `Server` say in their modules which step follows which. Needs `pip install "fedsrd[secure]"`.
"""

from fedsrd.privacy.secure.client import Client, Sign
from fedsrd.privacy.secure.messages import Confirmation, Inbox, Keys, Reveal, Shares
from fedsrd.privacy.secure.server import Server, Verify
from fedsrd.privacy.secure.session import Session

__all__ = ["Client", "Confirmation", "Inbox", "Keys", "Reveal", "Server", "Session", "Shares", "Sign", "Verify"]

"""A site's part in secure aggregation across a network: its key, its peers, its session on the disk."""

import logging

from fedsrd.errors import SecureAggregationError
from fedsrd.federation.remote import header, identity
from fedsrd.federation.remote.replica import Replica
from fedsrd.federation.remote.site import Site
from fedsrd.federation.remote.unmasked import Unmasked
from fedsrd.federation.secure_client import OnDisk, SecureClient
from fedsrd.federation.secure_messages import verifier
from fedsrd.federation.sum_codec import Secret
from fedsrd.privacy.ledger import site_secret
from fedsrd.text import foreign

SESSION = "session.json"
"""Beside the replica; it holds secrets of the round."""
LOGGER = logging.getLogger("flwr")


def secure_client(site: Site, replica: Replica) -> SecureClient:
    """The site's side of its sessions.

    Raises:
        SecureAggregationError: the site knows its peers and has no key of its own to be known by.
        IdentityError: its key cannot be read.
    """
    if site.peers is not None and site.key is None:
        raise SecureAggregationError(
            "this site knows its peers' keys and has none itself; start it with --node-config 'key=\"FILE\"'"
        )
    sign = None if site.key is None else identity.load(site.key).sign
    verify = None if site.peers is None else verifier(site.peers)
    # A simulation is the user's own, to be run as often as he likes.
    sums = None if site.simulated else Unmasked(site.state / "unmasked" / site.name)
    return SecureClient(site.name, OnDisk(replica.folder / SESSION), sign, verify, sums)


def noise_secret(site: Site, run: str, number: int) -> Secret:
    """What a round's share of noise comes from: the site's own secret, which no server has.

    Raises:
        PrivacyError: it is damaged, open to others, or gone.
    """
    return site_secret(site.state / "privacy" / site.name), "clients", run, site.name, number


def answered(asked: header.Secure, body: bytes, site: Site, replica: Replica) -> tuple[header.SecureReply, bytes]:
    """A site's answer to its part of a phase, or why there is none. The replica is locked."""
    if site.peers is None and asked.phase == "keys" and not site.simulated:
        LOGGER.warning(
            "secure aggregation without a peers file (--node-config 'peers=\"FILE\"'): the server is trusted to pass "
            "on the sites' own keys, and could put its own in their place"
        )
    try:
        answer = secure_client(site, replica).answer(asked.federation, asked.round, asked.phase, body)
    except SecureAggregationError as error:
        return _reply(asked, foreign(error)), b""
    return _reply(asked), answer


def _reply(asked: header.Secure, failure: str | None = None) -> header.SecureReply:
    return header.SecureReply(name=asked.name, round=asked.round, phase=asked.phase, failure=failure)

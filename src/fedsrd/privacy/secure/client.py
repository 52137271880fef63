"""One client's side of secure aggregation (Bonawitz et al., CCS 2017, ePrint 2017/281, figure 4).

    client, keys = Client.start(session, name, sign)     keys go to the server
    shares = client.share(roster, verify)                the roster came from it; shares go to it
    client.mask(inbox, words)                            the words go to it
    confirmation = client.confirm(survivors, sign)       only where clients sign
    reveal = client.reveal(survivors, confirmations, verify)

`to_bytes` and `from_bytes` between any two steps; what it gives holds secrets. Store it before the step's answer is
sent: the rules below hold for a client that does not forget. An error ends the session for this client.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, Self

from pydantic import Field

from fedsrd.errors import SecureAggregationError
from fedsrd.privacy.packed import Words
from fedsrd.privacy.secure import crypto
from fedsrd.privacy.secure.graph import Graph, graph
from fedsrd.privacy.secure.messages import Confirmation, Inbox, Keys, Reveal, Sealed, Share, Shares, context_of
from fedsrd.privacy.secure.session import Message, Name, Names, Session
from fedsrd.text import foreign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

Sign = Callable[[bytes], str]
"""Signs a statement with the site's long-lived key."""
Verify = Callable[[str, str, bytes], bool]
"""Whether (name, signature, statement) is signed by who bears the name."""

Phase = Literal["started", "shared", "masked", "confirmed", "revealed", "ended"]
Seed = Annotated[bytes, Field(min_length=crypto.SEED_BYTES, max_length=crypto.SEED_BYTES)]


class _State(Message):
    """All that a client remembers."""

    session: Session
    phase: Phase
    keys: Keys
    seal_seed: Seed
    mask_seed: Seed
    self_seed: Seed
    signs: bool
    checks: bool = False
    roster: tuple[Keys, ...] = ()
    own_shares: tuple[Share, ...] = ()
    participants: Names = ()
    sealed: dict[Name, Sealed] = Field(default_factory=dict)
    survivors: Names = ()


class Client:
    """A client in one session. Made by `start` or `from_bytes`."""

    def __init__(self, state: _State):
        self._state = state

    @property
    def session(self) -> Session:
        """The session that it takes part in."""
        return self._state.session

    @property
    def phase(self) -> Phase:
        """What it did last; "ended" after an error."""
        return self._state.phase

    @classmethod
    def start(cls, session: Session, name: str, sign: Sign | None) -> tuple["Client", Keys]:
        """Phase 1: fresh secrets from the operating system, and the two public keys to advertise.

        Args:
            session: the public parameters.
            name: this client's, one of the session's.
            sign: signs with the key that the other clients know; None where they know none, and the server is trusted
                to be honest but curious.

        Raises:
            SecureAggregationError: the session is not for this client, or a library is missing.
        """
        crypto.needed()
        if name not in session.clients:
            raise SecureAggregationError(f"{name!r} is not in the session: expected one of its {len(session.clients)}")
        seal_seed, mask_seed, self_seed = (os.urandom(crypto.SEED_BYTES) for _ in range(3))
        digest = session.digest()
        keys = Keys(
            name=name,
            seal_key=crypto.public_bytes(crypto.private_key(seal_seed, "seal-key", digest)),
            mask_key=crypto.public_bytes(crypto.private_key(mask_seed, "mask-key", digest)),
        )
        if sign is not None:
            keys = keys.model_copy(update={"signature": sign(keys.said(digest))})
        state = _State(
            session=session,
            phase="started",
            keys=keys,
            seal_seed=seal_seed,
            mask_seed=mask_seed,
            self_seed=self_seed,
            signs=sign is not None,
        )
        return cls(state), keys

    def share(self, roster: Sequence[Keys], verify: Verify | None) -> Shares:
        """Phase 2: both secrets, in shares sealed for the neighbours.

        Args:
            roster: everybody's keys, as the server passes them on.
            verify: knows the clients' long-lived public keys; None where there are none.

        Raises:
            SecureAggregationError: an entry is missing, doubled, changed or not signed, or there are too few. Nothing
                more is sent in this session.
        """
        self._expect("started")
        state, own = self._state, self._state.keys.name
        if verify is not None and not state.signs:
            self._end("started without a signature: expected one where others' are checked")
        by_name = self._checked(roster, verify)
        self._become(phase="shared", checks=verify is not None, roster=tuple(by_name[name] for name in sorted(by_name)))
        context, neighbours = self._context(), self._graph()
        holders = neighbours.holders(own)
        parts = [crypto.split(seed, neighbours.threshold, len(holders)) for seed in (state.self_seed, state.mask_seed)]
        key = crypto.private_key(state.seal_seed, "seal-key", state.session.digest())
        sealed = {}
        for holder, self_share, key_share in zip(holders, *parts, strict=True):
            if holder == own:
                self._become(own_shares=(self_share, key_share))
                continue
            secret = self._agree(key, by_name[holder].seal_key, holder)
            sealed[holder] = crypto.seal(secret, context, own, holder, self_share + key_share)
        return Shares(
            name=own, commitment=crypto.commitment(state.self_seed, state.session.digest(), own), sealed=sealed
        )

    def mask(self, inbox: Inbox, words: Words) -> None:
        """Phase 3: adds the self mask and the masks shared with the neighbours that take part, in place. Only once: who
        may have to send the words again keeps them.

        Args:
            inbox: who takes part, and shares sealed for this client.
            words: packed integers of the session's layout, shape (words,), dtype uint64.

        Raises:
            SecureAggregationError: too few take part, the inbox does not fit the roster, the words are not of the
                layout, or something was masked before. The words are as they were.
        """
        if self.phase in ("masked", "confirmed", "revealed"):
            raise SecureAggregationError("this session's input is masked already: expected one input a session")
        self._expect("shared")
        if not self.session.layout.holds(words):
            raise SecureAggregationError(
                f"{words.dtype} of shape {words.shape}: expected {self.session.layout.words} words of "
                f"{self.session.layout.bits}-bit fields"
            )
        own, by_name, neighbours = self._state.keys.name, self._roster(), self._graph()
        participants = self._names(inbox.participants, "participants", set(by_name))
        holders = neighbours.holders(own)
        present = set(participants)
        taking_part = [name for name in holders if name in present]
        if len(taking_part) < neighbours.threshold:
            self._end(
                f"{len(taking_part)} of {len(holders)} neighbours take part: expected at least {neighbours.threshold}"
            )
        others = [name for name in taking_part if name != own]
        if set(inbox.sealed) != set(others):
            self._end("the sealed shares are not those of the neighbours that take part")
        context = self._context()
        key = crypto.private_key(self._state.mask_seed, "mask-key", self.session.digest())
        try:
            pairs = {other: crypto.pair_mask_key(key, context, own, other, by_name[other].mask_key) for other in others}
        except SecureAggregationError as error:
            self._end(str(error))
        self._become(phase="masked", participants=participants, sealed=dict(inbox.sealed))
        crypto.mask_(
            words,
            self.session.layout,
            [
                crypto.self_mask_key(self._state.self_seed, context, own),
                *(pairs[name] for name in others if own < name),
            ],
            [pairs[name] for name in others if name < own],
        )

    def confirm(self, survivors: Sequence[str], sign: Sign) -> Confirmation:
        """Phase 4: signs the set of survivors, so that no client helps to unmask another one (their round 3).

        Args:
            survivors: whose masked input the server has.
            sign: as in `start`.

        Raises:
            SecureAggregationError: another set was confirmed before, or this client is not in it, or it is too small or
                not of those that took part.
        """
        if not self._state.signs:
            raise SecureAggregationError("started without a signature: expected one where sets are confirmed")
        chosen = self._settle(survivors, "confirmed")
        own = self._state.keys.name
        said = Confirmation.said(self._context(), own, self._state.participants, chosen)
        return Confirmation(name=own, signature=sign(said))

    def reveal(
        self, survivors: Sequence[str], confirmations: Sequence[Confirmation] = (), verify: Verify | None = None
    ) -> Reveal:
        """Phase 5: shares of the survivors' self masks, and of the mask keys of those that dropped.

        A client that has revealed in a round must not take part in another session of that round: a server that feigns
        failure would learn the sums of two sets of clients, and with them their difference. The rule lives with the
        caller, who knows of rounds; here it is one answer a session.

        Args:
            survivors: whose masked input the server has. Asked again with the same ones the answer is the same.
            confirmations: of at least the threshold of clients, where keys were checked in `share`.
            verify: as in `share`.

        Raises:
            SecureAggregationError: another set than before, or one that may not be; too few of the confirmations are
                valid, or they are not of this set.
        """
        state, own = self._state, self._state.keys.name
        if state.checks:
            if state.phase not in ("confirmed", "revealed"):
                raise SecureAggregationError("nothing was confirmed: expected the phase of confirmations before this")
            self._confirmed(tuple(sorted(survivors)), confirmations, verify)
        chosen = self._settle(survivors, "revealed")
        context, by_name = self._context(), self._roster()
        key = crypto.private_key(state.seal_seed, "seal-key", self.session.digest())
        self_shares, key_shares, unreadable = {own: state.own_shares[0]}, {}, []
        for sender, sealed in state.sealed.items():
            secret = self._agree(key, by_name[sender].seal_key, sender)
            both = crypto.unseal(secret, context, sender, own, sealed)
            if both is None:
                unreadable.append(sender)
            elif sender in chosen:
                self_shares[sender] = both[: crypto.SEED_BYTES]
            else:
                key_shares[sender] = both[crypto.SEED_BYTES :]
        return Reveal(name=own, self_shares=self_shares, key_shares=key_shares, unreadable=tuple(unreadable))

    def to_bytes(self) -> bytes:
        """All that it remembers, secrets too, as JSON."""
        return self._state.write()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The client that `to_bytes` wrote down.

        Raises:
            SecureAggregationError: these are no such bytes.
        """
        return cls(_State.read(raw))

    def _checked(self, roster: Sequence[Keys], verify: Verify | None) -> dict[str, Keys]:
        session, own = self.session, self._state.keys
        by_name = {keys.name: keys for keys in roster}
        if len(by_name) < len(roster):
            self._end("the roster names a client twice: expected each once")
        if strangers := sorted(by_name.keys() - set(session.clients)):
            self._end(f"the roster names {foreign(strangers[0], 80)}, who is not in the session")
        if by_name.get(own.name) != own:
            self._end("the roster lacks this client's own keys, or has others in their place")
        if len(by_name) < session.threshold:
            self._end(f"the roster has {len(by_name)} clients: expected at least {session.threshold}")
        public = {key for keys in roster for key in (keys.seal_key, keys.mask_key)}
        if len(public) < 2 * len(roster):
            self._end("a public key is in the roster twice: expected each once")
        if verify is not None:
            digest = session.digest()
            for name, keys in by_name.items():
                if not verify(name, keys.signature, keys.said(digest)):
                    self._end(f"the keys of {foreign(name, 80)} are not signed by it for this session")
        return by_name

    def _names(self, given: Sequence[str], what: str, among: set[str]) -> tuple[str, ...]:
        names = tuple(sorted(given))
        if len(set(names)) < len(names) or not among.issuperset(names):
            self._end(f"the {what} are not some of those before, each once")
        if self._state.keys.name not in names:
            self._end(f"this client is not among the {what}: expected it there")
        if len(names) < self.session.threshold:
            self._end(f"{len(names)} {what}: expected at least {self.session.threshold}")
        return names

    def _settle(self, survivors: Sequence[str], phase: Literal["confirmed", "revealed"]) -> tuple[str, ...]:
        """The one set of survivors. Another one than before is refused, and the first one stays."""
        self._expect("masked", "confirmed", "revealed")
        state = self._state
        if state.survivors:
            if tuple(sorted(survivors)) != state.survivors:
                raise SecureAggregationError("another set of survivors than before: expected one set a session")
            if phase == "revealed":
                self._become(phase=phase)
            return state.survivors
        names = self._names(survivors, "survivors", set(state.participants))
        self._become(phase=phase, survivors=names)
        return names

    def _confirmed(
        self, survivors: tuple[str, ...], confirmations: Sequence[Confirmation], verify: Verify | None
    ) -> None:
        if verify is None:
            raise SecureAggregationError("keys were checked in this session: expected the means to check confirmations")
        context, participants, among = self._context(), self._state.participants, set(survivors)
        valid = {
            one.name
            for one in confirmations[: len(participants)]
            if one.name in among
            and verify(one.name, one.signature, Confirmation.said(context, one.name, participants, survivors))
        }
        if len(valid) < self.session.threshold:
            raise SecureAggregationError(
                f"{len(valid)} valid confirmations of these survivors: expected at least {self.session.threshold}"
            )

    def _expect(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise SecureAggregationError(
                f"this session is {self.phase}: expected {' or '.join(phases)} for the step that is asked for"
            )

    def _agree(self, key: "X25519PrivateKey", theirs: bytes, whose: str) -> bytes:
        try:
            return crypto.agree(key, theirs, whose)
        except SecureAggregationError as error:
            self._end(str(error))

    def _end(self, why: str) -> NoReturn:
        self._become(phase="ended")
        raise SecureAggregationError(f"secure aggregation: {why}; nothing more is sent in this session")

    def _become(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)

    def _roster(self) -> dict[str, Keys]:
        return {keys.name: keys for keys in self._state.roster}

    def _context(self) -> bytes:
        return context_of(self.session.digest(), self._roster())

    def _graph(self) -> Graph:
        return graph([keys.name for keys in self._state.roster], self.session.threshold, self._context())

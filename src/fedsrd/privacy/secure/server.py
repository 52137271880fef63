"""The server's side of secure aggregation (Bonawitz et al., CCS 2017, ePrint 2017/281, figure 4).

    server = Server(session, verify)
    roster = server.keys(answers)               to all in it
    inboxes = server.shares(answers)            to each its own
    server.masked(name, words)                  as they come
    survivors = server.survivors()              closes the phase; to all in it
    confirmations = server.confirmations(...)   where clients sign; to all that confirmed
    server.reveal(answers)
    words = server.total()                      the sum of the survivors' integers, exactly

Who misbehaves is left out and named in `refused`; with fewer clients than the threshold every step raises TooFewError.
`to_bytes` and `from_bytes` between any two steps, so that a server that crashed goes on with the same session.
"""

from collections.abc import Callable, Collection, Container, Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsrd.errors import SecureAggregationError, TooFewError
from fedsrd.privacy import packed
from fedsrd.privacy.packed import Words
from fedsrd.privacy.secure import crypto
from fedsrd.privacy.secure.graph import Graph, graph
from fedsrd.privacy.secure.messages import Confirmation, Inbox, Keys, Reveal, Shares, context_of
from fedsrd.privacy.secure.session import Message, Name, Names, Session
from fedsrd.text import foreign

Verify = Callable[[str, str, bytes], bool]
FINAL = "who has revealed takes part in no other session of this round"
Phase = Literal["keys", "shares", "masked", "confirmations", "reveal", "done"]


class _State(Message):
    """All that a server remembers, but for the accumulator."""

    session: Session
    phase: Phase = "keys"
    roster: dict[Name, Keys] = Field(default_factory=dict)
    given: dict[Name, Shares] = Field(default_factory=dict)
    masked: Names = ()
    confirmed: dict[Name, Confirmation] = Field(default_factory=dict)
    revealed: dict[Name, Reveal] = Field(default_factory=dict)
    refused: dict[str, str] = Field(default_factory=dict)


class Server:
    """A server in one session.

    Args:
        session: the public parameters.
        verify: whether (name, signature, statement) is signed by who bears the name; None where it knows no keys. The
            clients check for themselves: this finds early whom they would refuse.

    Raises:
        SecureAggregationError: a library is missing.
    """

    def __init__(self, session: Session, verify: Verify | None = None):
        crypto.needed()
        self._state = _State(session=session)
        self._verify = verify
        self._sum: Words | None = None

    @property
    def session(self) -> Session:
        """The session."""
        return self._state.session

    @property
    def phase(self) -> Phase:
        """What it waits for."""
        return self._state.phase

    @property
    def refused(self) -> dict[str, str]:
        """Who misbehaved, and how."""
        return dict(self._state.refused)

    def keys(self, answers: Mapping[str, Keys]) -> tuple[Keys, ...]:
        """Phase 1: the roster, sorted by name.

        Args:
            answers: by the name of the client that sent it.

        Raises:
            TooFewError: fewer usable keys than the threshold.
        """
        self._expect("keys")
        digest = self.session.digest()
        probe = crypto.private_key(bytes(crypto.SEED_BYTES), "probe", digest)
        roster: dict[str, Keys] = {}
        seen: set[bytes] = set()
        for name, keys in sorted(answers.items()):
            if not self._known(name, keys.name, self.session.clients):
                continue
            if keys.seal_key == keys.mask_key or {keys.seal_key, keys.mask_key} & seen:
                self._refuse(name, "a public key that is there already")
            elif self._verify and not self._verify(name, keys.signature, keys.said(digest)):
                self._refuse(name, "its keys are not signed by it for this session")
            elif not all(_is_point(probe, key) for key in (keys.seal_key, keys.mask_key)):
                self._refuse(name, "a public key that is no point of X25519")
            else:
                seen |= {keys.seal_key, keys.mask_key}
                roster[name] = keys
        self._enough("keys", roster)
        self._become(phase="shares", roster=roster)
        return tuple(roster.values())

    def shares(self, answers: Mapping[str, Shares]) -> dict[str, Inbox]:
        """Phase 2: what each participant gets.

        Args:
            answers: by the name of the client that sent it.

        Raises:
            TooFewError: fewer usable answers than the threshold.
        """
        self._expect("shares")
        neighbours = self._graph()
        given: dict[str, Shares] = {}
        for name, shares in sorted(answers.items()):
            if not self._known(name, shares.name, self._state.roster):
                continue
            if set(shares.sealed) != set(neighbours.holders(name)) - {name}:
                self._refuse(name, "sealed shares for others than its neighbours")
            else:
                given[name] = shares
        self._enough("shares", given)
        self._become(phase="masked", given=given)
        self._sum = self.session.layout.zeros()
        return self.inboxes()

    def inboxes(self) -> dict[str, Inbox]:
        """Phase 2's answers once more: for clients that did not get theirs."""
        given, neighbours = self._state.given, self._graph()
        participants = tuple(given)
        return {
            name: Inbox(
                participants=participants,
                sealed={
                    sender: given[sender].sealed[name]
                    for sender in neighbours.holders(name)
                    if sender in given and sender != name
                },
            )
            for name in participants
        }

    def masked(self, name: str, words: bytes | NDArray[Any]) -> bool:
        """Phase 3: adds one client's masked input. False: it was refused, and the sum is as it was.

        Args:
            name: of the client that sent it.
            words: as bytes from the wire, or shape (words,), dtype uint64.
        """
        self._expect("masked")
        assert self._sum is not None
        if not self._known(name, name, self._state.given):
            return False
        if name in self._state.masked:
            self._refuse(name, "a second masked input")
            return False
        layout = self.session.layout
        try:
            vector = words if isinstance(words, np.ndarray) else packed.from_bytes(words, layout)
            if not layout.holds(vector):
                raise ValueError(f"{vector.dtype} of shape {vector.shape}: expected {layout.words} words")
        except ValueError as error:
            self._refuse(name, f"a masked input of {error}")
            return False
        packed.add_(self._sum, vector, layout)
        self._become(masked=(*self._state.masked, name))
        return True

    def survivors(self) -> tuple[str, ...]:
        """Closes phase 3: whose inputs are in the sum, sorted. The same when asked again.

        Raises:
            TooFewError: fewer than the threshold.
        """
        self._expect("masked", "confirmations", "reveal", "done")
        if self.phase == "masked":
            self._enough("masked", self._state.masked)
            self._become(phase="confirmations", masked=tuple(sorted(self._state.masked)))
        return self._state.masked

    def confirmations(self, answers: Mapping[str, Confirmation]) -> tuple[Confirmation, ...]:
        """Phase 4, where clients sign: what goes to those who confirmed, with the survivors.

        Args:
            answers: by the name of the client that sent it.

        Raises:
            TooFewError: fewer valid ones than the threshold.
        """
        self._expect("confirmations")
        context, survivors = self._context(), self._state.masked
        confirmed: dict[str, Confirmation] = {}
        for name, one in sorted(answers.items()):
            if not self._known(name, one.name, survivors):
                continue
            said = Confirmation.said(context, name, tuple(self._state.given), survivors)
            if self._verify and not self._verify(name, one.signature, said):
                self._refuse(name, "its confirmation is not signed by it for these survivors")
            else:
                confirmed[name] = one
        self._enough("confirmations", confirmed)
        self._become(phase="reveal", confirmed=confirmed)
        return tuple(confirmed.values())

    def reveal(self, answers: Mapping[str, Reveal]) -> None:
        """Phase 5: takes the shares. May be called again with later answers while the total is not to be had.

        Args:
            answers: by the name of the client that sent it; of survivors.

        Raises:
            TooFewError: with all that came so far there are fewer than the threshold.
        """
        self._expect("confirmations", "reveal")
        survivors = set(self._state.masked)
        participants, neighbours = set(self._state.given), self._graph()
        revealed = dict(self._state.revealed)
        for name, one in sorted(answers.items()):
            if not self._known(name, one.name, survivors):
                continue
            near = set(neighbours.holders(name)) & participants
            named = (set(one.self_shares), set(one.key_shares), set(one.unreadable))
            right = (near & survivors, near - survivors, near - {name})
            if not all(some <= whole for some, whole in zip(named, right, strict=True)):
                self._refuse(name, "shares that nobody asked for")
                continue
            revealed[name] = one
        self._become(phase="reveal", revealed=revealed)
        self._enough("reveal", revealed)

    def total(self) -> Words:
        """The sum of the survivors' integers modulo 2^bits, packed: shape (words,), dtype uint64. The same when asked
        again.

        Raises:
            SecureAggregationError: a secret cannot be reconstructed, or what was revealed is wrong; who is to blame
                stands in `refused` as far as that can be told.
        """
        self._expect("reveal", "done")
        assert self._sum is not None
        if self.phase == "done":
            return self._sum
        digest, context, neighbours = self.session.digest(), self._context(), self._graph()
        survivors, given, roster = set(self._state.masked), self._state.given, self._state.roster
        for one in self._state.revealed.values():
            for sender in one.unreadable:
                self._refuse(sender, f"its sealed shares did not open, says {foreign(one.name, 80)}")
        plus: list[bytes] = []
        minus: list[bytes] = []
        for name in sorted(given):
            if name in survivors:
                committed = given[name].commitment
                seed = self._secret(name, neighbours, lambda seed: crypto.commitment(seed, digest, name) == committed)  # noqa: B023
                minus.append(crypto.self_mask_key(seed, context, name))
                continue
            public = roster[name].mask_key
            seed = self._secret(
                name,
                neighbours,
                lambda seed: crypto.public_bytes(crypto.private_key(seed, "mask-key", digest)) == public,  # noqa: B023
            )
            key = crypto.private_key(seed, "mask-key", digest)
            for other in neighbours.holders(name):
                if other in survivors:
                    mask = crypto.pair_mask_key(key, context, name, other, roster[other].mask_key)
                    # The survivor added it if its name comes first, and took it away if not.
                    (minus if other < name else plus).append(mask)
        # An interruption leaves the accumulator whole.
        words = self._sum.copy()
        crypto.mask_(words, self.session.layout, plus, minus)
        self._sum = words
        self._become(phase="done")
        return words

    def to_bytes(self) -> bytes:
        """All that it remembers: a line of JSON, and the accumulator's bytes.

        Not after an interruption within `masked`: go on with what was stored before.
        """
        return self._state.write() + b"\n" + (b"" if self._sum is None else packed.to_bytes(self._sum))

    @classmethod
    def from_bytes(cls, raw: bytes, verify: Verify | None = None) -> Self:
        """The server that `to_bytes` wrote down.

        Raises:
            SecureAggregationError: these are no such bytes.
        """
        head, _, tail = raw.partition(b"\n")
        state = _State.read(head)
        server = cls(state.session, verify)
        server._state = state
        if state.phase not in ("keys", "shares"):
            try:
                server._sum = packed.from_bytes(tail, state.session.layout)
            except ValueError as error:
                raise SecureAggregationError(f"the accumulator of a stored session: {error}") from None
        return server

    def _secret(self, owner: str, neighbours: Graph, right: Callable[[bytes], bool]) -> bytes:
        survives = owner in self._state.masked
        shares: dict[str, tuple[int, bytes]] = {}
        for point, holder in enumerate(neighbours.holders(owner), 1):
            one = self._state.revealed.get(holder)
            share = one and (one.self_shares if survives else one.key_shares).get(owner)
            if share:
                shares[holder] = (point, share)
        secret, liars = crypto.reconstruct(shares, neighbours.threshold, right, set(self._state.refused))
        for liar in sorted(liars):
            self._refuse(liar, "revealed a wrong share")
        if secret is None:
            self._refuse(owner, "its secret does not follow from the shares that came")
            raise SecureAggregationError(
                f"secure aggregation: the secret of {foreign(owner, 80)} does not follow from the {len(shares)} "
                f"shares that came: expected {neighbours.threshold} right ones; the sum was not learnt, and {FINAL}"
            )
        return secret

    def _known(self, name: str, says: str, among: Container[str]) -> bool:
        if name in among and name == says:
            return True
        self._refuse(name, "not of this phase" if name == says else f"spoke as {foreign(says, 80)}")
        return False

    def _refuse(self, name: str, why: str) -> None:
        self._become(refused={**self._state.refused, name: why})

    def _enough(self, phase: str, left: Collection[str]) -> None:
        if len(left) < self.session.threshold:
            reasons = {foreign(name, 80): why for name, why in self._state.refused.items()}
            raise TooFewError(phase, tuple(sorted(left)), self.session.threshold, reasons)

    def _expect(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise SecureAggregationError(f"the session waits for {self.phase}: expected {' or '.join(phases)}")

    def _become(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)

    def _context(self) -> bytes:
        return context_of(self.session.digest(), self._state.roster)

    def _graph(self) -> Graph:
        return graph(tuple(self._state.roster), self.session.threshold, self._context())


def _is_point(probe: Any, key: bytes) -> bool:
    try:
        crypto.agree(probe, key, "")
    except SecureAggregationError:
        return False
    return True

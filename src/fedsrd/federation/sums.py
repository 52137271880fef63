"""Updates as integers on a grid that all share, so that the server needs nothing but their sum.

In a round all clients send the same elements (`Method.elements`), each as a whole multiple of its tensor's step. The
vector of a round is

    the elements of every tensor that travels, in the order of the table: integers from -levels to levels
    for every tensor, how large this client would have its step: 16 bits, in digits of base 2 levels + 1
    where clients weigh by their examples, the weight: 15 bits, in the same digits

so every field of a sum over n clients is within n levels. The means of what clients would have are the next round's
steps; the server sees them alone, and sends them with the task. Steps are bfloat16 words, whose mean is nearly the
logarithm's, and the same everywhere. Where clients add noise (`privacy.distributed`) the vector is the elements alone,
one step serves all tensors in all rounds, and a field has room for the noise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fedsrd import rng, wire
from fedsrd.core.tensors import Delta, Draw, SparseTensor, TensorTable, aligned
from fedsrd.errors import FederationError, PayloadError
from fedsrd.methods import Method, RoundContext
from fedsrd.privacy import packed
from fedsrd.privacy.distributed import DistributedNoise
from fedsrd.privacy.options import ClientPrivacy
from fedsrd.privacy.packed import Layout, Words
from fedsrd.wire import SumOptions

Array = np.ndarray[Any, Any]
WHOLE = 32767
"""The weight of a client that counts as much as one can."""
_LEAST, _MOST = 0x2000, 0x5F00
"""Words of steps: 2^-63 and 2^63."""
_FASTEST = 256
"""Words by which a step may change in a round: a factor of four."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task says of the round's sum.

    Attributes:
        clients: that are asked, so that a field has room for all of them.
        steps: a bfloat16 word for every tensor that travels, in order.
    """

    clients: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """The vector of a round.

    Attributes:
        table: that of updates.
        elements: what travels of each tensor.
        options: the recipe's.
        clients: that are asked.
        private: the noise that every client adds, and how many shares of it a sum has at least; None: none.
    """

    table: TensorTable
    elements: Mapping[str, Draw | None]
    options: SumOptions
    clients: int
    private: tuple[ClientPrivacy, int] | None = None

    @classmethod
    def of(
        cls,
        method: Method,
        table: TensorTable,
        options: SumOptions,
        context: RoundContext,
        clients: int,
        private: tuple[ClientPrivacy, int] | None = None,
    ) -> "Form":
        """The form of a method's round."""
        return cls(table, method.elements(table, context), options, clients, private)

    @cached_property
    def noise(self) -> DistributedNoise | None:
        """What the clients of the round add."""
        if self.private is None:
            return None
        asked, shares = self.private
        count = sum(self.counts.values())
        return DistributedNoise(asked.noise_multiplier, asked.clip, self.options.levels, shares, self.clients, count)

    @property
    def most(self) -> int:
        """The largest integer of a sum over all clients that are asked."""
        return self.clients * self.options.levels + (0 if self.noise is None else self.noise.reach)

    @property
    def bits(self) -> int:
        """Of a field, so that a sum over all that are asked is exact.

        Raises:
            ValueError: that is more than 32.
        """
        bits = (2 * self.most).bit_length()
        if bits > 32:
            noise = "" if self.noise is None else ", and their noise,"
            raise ValueError(
                f"{self.clients} clients with {self.options.levels} levels{noise} need {bits} bits an element: "
                "expected at most 32; take fewer levels"
            )
        return bits

    @property
    def numbers(self) -> int:
        """How many 16-bit numbers follow the elements: none under noise, which they have not."""
        return 0 if self.private is not None else len(self.elements) + (self.options.examples is not None)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many elements of each tensor travel."""
        sizes = {spec.name: spec.elements for spec in self.table.specs}
        return {
            name: sizes[name]
            if draw is None
            else int(np.count_nonzero(rng.keep_mask(sizes[name], draw.keep, draw.seed, "mask", name, first=draw.first)))
            for name, draw in self.elements.items()
        }

    @cached_property
    def layout(self) -> Layout:
        """How the vector lies in words."""
        return Layout(self.bits, sum(self.counts.values()) + self.numbers * self.digits)

    @property
    def base(self) -> int:
        """Of the digits: as many as a field has values."""
        return 2 * self.options.levels + 1

    @property
    def digits(self) -> int:
        """Fields of one 16-bit number."""
        count, most = 1, self.base
        while most < 1 << 16:
            count, most = count + 1, most * self.base
        return count

    def written(self, number: int) -> list[int]:
        """A number below 2^16 in fields, the lowest digit first, each less `levels`."""
        found = []
        for _ in range(self.digits):
            number, digit = divmod(number, self.base)
            found.append(digit - self.options.levels)
        return found

    def read(self, fields: Array, clients: int) -> int:
        """The sum of so many clients' numbers."""
        whole = 0
        for digit in reversed(fields.tolist()):
            whole = whole * self.base + digit + clients * self.options.levels
        return whole


@dataclass
class Steps:
    """What the server keeps of a run with sums: the word of every tensor's step.

    Attributes:
        words: by tensor.
    """

    words: dict[str, int] = field(default_factory=dict)

    def terms(self, form: Form) -> Terms:
        """Of a round."""
        return Terms(form.clients, tuple(self.words[name] for name in form.elements))

    @classmethod
    def first(cls, table: TensorTable, options: SumOptions, far: float) -> "Steps":
        """Of the first round.

        Args:
            table: that of updates.
            options: the recipe's.
            far: about how far an element moves in a round at most.
        """
        step = far if options.threshold is not None else far / 2 * options.range / options.levels
        return cls(dict.fromkeys(table.shapes, word_of(step)))

    def following(self, form: Form, wanted: Mapping[str, int], clients: int) -> "Steps":
        """Of the next round, from the sum of what so many clients would have."""
        words = dict(self.words)
        for name, total in wanted.items():
            mean = round(total / clients)
            words[name] = min(max(mean, words[name] - _FASTEST, _LEAST), words[name] + _FASTEST, _MOST)
        return Steps(words)


def read_words(payload: bytes, form: Form, round_number: int, version: int) -> Words:
    """The packed words of a client's payload.

    Raises:
        PayloadError: it is damaged, of another round, version, adapter or width.
    """
    layout = form.layout
    raw = wire.decode_sum(payload, layout.bytes, layout.bits, form.table, round_number, version)
    try:
        return packed.from_bytes(raw, layout)
    except ValueError as error:
        raise PayloadError(str(error)) from None


def opened(words: Words, form: Form, steps: Steps, clients: int) -> tuple[Delta, dict[str, int]]:
    """The mean of so many clients' updates, and the sums of the steps that they would have.

    Args:
        words: the sum, packed.
        form: the round's.
        steps: those of the round.
        clients: whose vectors are in it, at least one.

    Raises:
        FederationError: the sum is none that so many clients can make.
    """
    vector = packed.unpack(words, form.layout)
    most = clients * form.options.levels + (form.most - form.clients * form.options.levels)
    if len(vector) and (int(vector.max()) > most or int(vector.min()) < -most):
        raise FederationError(
            f"the sum has {int(np.abs(vector.astype(np.int64)).max())} in a field: {clients} clients with "
            f"{form.options.levels} levels make {most} at most, so somebody sent what is no update; nobody can tell who"
        )
    *whole, rest = split(vector, [*form.counts.values()])
    if form.noise is not None:
        even = dict.fromkeys(form.elements, form.noise.step / clients)
        return _delta(form, dict(zip(form.elements, whole, strict=True)), even), {}
    numbers = [form.read(fields, clients) for fields in rest.reshape(-1, form.digits)]
    weight = clients * WHOLE if form.options.examples is None else numbers.pop()
    wanted = dict(zip(form.elements, numbers, strict=True))
    if not clients <= weight <= clients * WHOLE or any(number > clients * 0x7F7F for number in numbers):
        raise FederationError("the sum's own numbers are none that clients send; nobody can tell who sent others")
    factors = {name: number_of(steps.words[name]) * WHOLE / weight for name in form.elements}
    return _delta(form, dict(zip(form.elements, whole, strict=True)), factors), wanted


def _delta(form: Form, whole: Mapping[str, Array], factors: Mapping[str, float]) -> Delta:
    found = {}
    for name, draw in form.elements.items():
        values = aligned(torch.from_numpy(whole[name].astype(np.float32) * np.float32(factors[name])))
        shape = form.table.shapes[name]
        positions = None if draw is None else draw.positions(name, int(np.prod(shape)))
        found[name] = SparseTensor(shape, positions, values, draw)
    return found


def split(vector: Array, counts: list[int]) -> Iterator[Array]:
    return iter(np.split(vector, np.cumsum(counts)))


def number_of(word: int) -> float:
    """Of a bfloat16 word."""
    return float(np.uint32(word << 16).view(np.float32))


def word_of(number: float) -> int:
    """The bfloat16 word of a positive number, rounded down, within what steps may be."""
    with np.errstate(over="ignore"):
        word = int(np.float32(number).view(np.uint32)) >> 16
    return min(max(word, _LEAST), _MOST)

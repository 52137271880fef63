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

import math
from collections.abc import Callable, Iterator, Mapping
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
Secret = tuple[bytes, *tuple[str | int, ...]]
"""32 bytes, and names of what they are for."""
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


class SumCodec:
    """An update as a vector of integers, in the hands of a method: what it is told will arrive is what is sent.

    Args:
        form: the round's.
        terms: the round's.
        seed: of the rounding; each client's own.
        examples: the client's number of them.
        mask: adds masks to packed words, in place; None: they travel as they are.
        secret: what noise comes from, where the form has any: 32 bytes that the server does not have, and names of what
            it is for.
    """

    def __init__(
        self,
        form: Form,
        terms: Terms,
        seed: int,
        examples: int,
        mask: Callable[[Words], None] | None = None,
        secret: Secret | None = None,
    ) -> None:
        self._form = form
        self._steps = dict(zip(form.elements, (_number(word) for word in terms.steps), strict=True))
        self._words = dict(zip(form.elements, terms.steps, strict=True))
        self._seed = seed
        cap = form.options.examples
        self._weight = WHOLE if cap is None else max(1, round(WHOLE * min(examples, cap) / cap))
        self._mask = mask
        self._secret = secret
        self._last: tuple[Delta, dict[str, Array], dict[str, int]] | None = None
        self._noise: Array | None = None
        if form.noise is not None:
            self._steps = dict.fromkeys(self._steps, form.noise.step)

    def received(self, delta: Delta) -> Delta:
        """What the sum has of it, before it is weighed. Raises ValueError as `payload`."""
        levels, _ = self._rounded(delta)
        weight = self._weight / WHOLE
        found = {}
        for name, whole in levels.items():
            values = torch.from_numpy(whole.astype(np.float32) * np.float32(self._steps[name] / weight))
            given = delta.get(name)
            positions = self._positions(name) if given is None else given.positions
            found[name] = SparseTensor(self._form.table.shapes[name], positions, values, self._form.elements[name])
        return found

    def size(self, delta: Delta) -> int:
        """Bytes of its payload, whatever it is."""
        return self._form.layout.bytes

    def payload(self, delta: Delta, kind: wire.Kind, round_number: int, version: int) -> bytes:
        """The bytes, masked where there is a mask.

        Raises:
            ValueError: it has other elements than the round's, or a value is not finite.
        """
        levels, wanted = self._rounded(delta)
        form = self._form
        vector = np.empty(form.layout.count, dtype=np.int16 if self._noise is None else np.int64)
        at = 0
        for name, count in form.counts.items():
            vector[at : at + count] = levels[name]
            at += count
        if self._noise is None:
            numbers = [wanted[name] for name in form.elements]
            if form.options.examples is not None:
                numbers.append(self._weight)
            vector[at:] = [digit for number in numbers for digit in form.written(number)]
        else:
            np.add(vector, self._noise, out=vector)
        words = packed.pack(vector, form.layout)
        if self._mask is not None:
            self._mask(words)
        return wire.encode_sum(packed.to_bytes(words), form.layout.bits, form.table, round_number, version)

    def _rounded(self, delta: Delta) -> tuple[dict[str, Array], dict[str, int]]:
        """Levels by tensor, and the words that this client would have for the steps."""
        if self._last is None or self._last[0] is not delta:
            if other := sorted(set(delta) - set(self._form.elements)):
                raise ValueError(f"{other[0]} does not travel in this round")
            counts = self._form.counts
            values = {name: self._values(name, count, delta.get(name)) for name, count in counts.items()}
            if self._form.noise is not None:
                self._last = (delta, self._noised(self._form.noise, values), {})
                return self._last[1], self._last[2]
            levels, wanted = {}, {}
            for name in counts:
                levels[name], wanted[name] = self._of_tensor(name, values[name])
            self._last = (delta, levels, wanted)
        return self._last[1], self._last[2]

    def _values(self, name: str, count: int, sparse: SparseTensor | None) -> Array:
        """What is sent of a tensor before it is rounded: (count,) float32, weighed."""
        if sparse is None:
            return np.zeros(count, dtype=np.float32)
        draw = self._form.elements[name]
        if sparse.draw != draw or (draw is None) != (sparse.positions is None) or sparse.count != count:
            raise ValueError(f"{name}: other elements than all clients send in this round")
        values = sparse.values.detach().cpu().numpy() * np.float32(self._weight / WHOLE)
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: a value is NaN or infinite")
        return np.asarray(values)

    def _noised(self, noise: DistributedNoise, values: Mapping[str, Array]) -> dict[str, Array]:
        """The integers of all tensors together, without their noise, which is kept for the payload."""
        if self._secret is None:
            raise ValueError("noise is asked for, and there is no secret to draw it from")
        whole = np.concatenate(list(values.values())) if values else np.empty(0, dtype=np.float32)
        levels, self._noise = noise.share(whole, *self._secret)
        return dict(zip(values, _split(levels, [len(one) for one in values.values()]), strict=False))

    def _of_tensor(self, name: str, values: Array) -> tuple[Array, int]:
        options, step = self._form.options, np.float32(self._steps[name])
        size = np.abs(values)
        mean = float(size.mean(dtype=np.float64)) if len(values) else 0.0
        if not mean:
            return np.zeros(len(values), dtype=np.int16), self._words[name]
        with np.errstate(over="ignore"):
            if options.threshold is None:
                exact = values / step
                exact += rng.fraction(len(values), self._seed, "rounding", name)
                levels = np.clip(np.floor(exact, out=exact), -options.levels, options.levels).astype(np.int16)
                return levels, _word(mean * options.range / options.levels)
            zero = min(options.threshold * mean, 0.95 * float(size.max()))
            near = np.clip(np.rint(size / step), 1, options.levels)
            # What this client alone would do: levels in steps of 3/2 of where zero ends, as `wire.values` has them.
            ideal = np.clip(np.floor(size / np.float32(1.5 * zero) + np.float32(1 / 3)), 1, options.levels)
        for levels in (near, ideal):
            levels[size < zero] = 0.0
        own = float((size * ideal).sum(dtype=np.float64) / np.square(ideal).sum(dtype=np.float64))
        return np.copysign(near, values).astype(np.int16), _word(own)

    def _positions(self, name: str) -> torch.Tensor | None:
        draw = self._form.elements[name]
        return None if draw is None else draw.positions(name, math.prod(self._form.table.shapes[name]))


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
        return cls(dict.fromkeys(table.shapes, _word(step)))

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
    *whole, rest = _split(vector, [*form.counts.values()])
    if form.noise is not None:
        even = dict.fromkeys(form.elements, form.noise.step / clients)
        return _delta(form, dict(zip(form.elements, whole, strict=True)), even), {}
    numbers = [form.read(fields, clients) for fields in rest.reshape(-1, form.digits)]
    weight = clients * WHOLE if form.options.examples is None else numbers.pop()
    wanted = dict(zip(form.elements, numbers, strict=True))
    if not clients <= weight <= clients * WHOLE or any(number > clients * 0x7F7F for number in numbers):
        raise FederationError("the sum's own numbers are none that clients send; nobody can tell who sent others")
    factors = {name: _number(steps.words[name]) * WHOLE / weight for name in form.elements}
    return _delta(form, dict(zip(form.elements, whole, strict=True)), factors), wanted


def _delta(form: Form, whole: Mapping[str, Array], factors: Mapping[str, float]) -> Delta:
    found = {}
    for name, draw in form.elements.items():
        values = aligned(torch.from_numpy(whole[name].astype(np.float32) * np.float32(factors[name])))
        shape = form.table.shapes[name]
        positions = None if draw is None else draw.positions(name, int(np.prod(shape)))
        found[name] = SparseTensor(shape, positions, values, draw)
    return found


def _split(vector: Array, counts: list[int]) -> Iterator[Array]:
    return iter(np.split(vector, np.cumsum(counts)))


def _number(word: int) -> float:
    """Of a bfloat16 word."""
    return float(np.uint32(word << 16).view(np.float32))


def _word(number: float) -> int:
    """The bfloat16 word of a positive number, rounded down, within what steps may be."""
    with np.errstate(over="ignore"):
        word = int(np.float32(number).view(np.uint32)) >> 16
    return min(max(word, _LEAST), _MOST)

"""An update as integers on the grid of its round (`sums`)."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from fedsrd import rng, wire
from fedsrd.core.tensors import Delta, SparseTensor
from fedsrd.federation.sums import WHOLE, Array, Form, Terms, number_of, split, word_of
from fedsrd.privacy import packed
from fedsrd.privacy.distributed import DistributedNoise
from fedsrd.privacy.packed import Words

Secret = tuple[bytes, *tuple[str | int, ...]]
"""32 bytes, and names of what they are for."""


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
        self._steps = dict(zip(form.elements, (number_of(word) for word in terms.steps), strict=True))
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
        return dict(zip(values, split(levels, [len(one) for one in values.values()]), strict=False))

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
                return levels, word_of(mean * options.range / options.levels)
            zero = min(options.threshold * mean, 0.95 * float(size.max()))
            near = np.clip(np.rint(size / step), 1, options.levels)
            # What this client alone would do: levels in steps of 3/2 of where zero ends, as `wire.values` has them.
            ideal = np.clip(np.floor(size / np.float32(1.5 * zero) + np.float32(1 / 3)), 1, options.levels)
        for levels in (near, ideal):
            levels[size < zero] = 0.0
        own = float((size * ideal).sum(dtype=np.float64) / np.square(ideal).sum(dtype=np.float64))
        return np.copysign(near, values).astype(np.int16), word_of(own)

    def _positions(self, name: str) -> torch.Tensor | None:
        draw = self._form.elements[name]
        return None if draw is None else draw.positions(name, math.prod(self._form.table.shapes[name]))

"""A reader of payloads in plain Python, written from docs/wire-format.md alone: no numpy, no entropy coder or random
generator of a library, nothing of `fedsrd.wire`. Slow on purpose; the real reader is held against it.
"""

import hashlib
import itertools
import math
import struct

U64 = (1 << 64) - 1


class Stream:
    def __init__(self, words):
        self.words, self.whole, self.untouched = list(words), bool(words), True
        self.code = self.next() << 32 | self.next()
        self.range = U64

    def next(self):
        return self.words.pop(0) if self.words else 0

    def symbol(self, table):
        scale = self.range >> 24
        quantile = self.code // scale
        assert quantile < 1 << 24
        k, start = 0, 0
        while start + table[k] <= quantile:
            start += table[k]
            k += 1
        self.untouched = False
        self.code -= scale * start
        self.range = scale * table[k]
        if self.range < 1 << 32:
            self.range <<= 32
            self.code = (self.code << 32 | self.next()) & U64
        return k

    def end(self):
        assert not self.words
        assert not self.whole if self.untouched else self.code < (1 << 33) - 1


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        assert self.at + size <= len(self.data)
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code, count):
        return list(struct.unpack(f"<{count}{code}", self.take(struct.calcsize(f"<{count}{code}"))))

    def stream(self):
        return Stream(self.numbers("I", self.numbers("I", 1)[0]))

    def histogram(self, count):
        if not count:
            return []
        n = self.numbers("B", 1)[0] + 1
        symbols, weights = self.numbers("B", n), self.numbers("H", n)
        if n == 1:
            return symbols * count
        table = [1 + w * ((1 << 24) - n) // sum(weights) for w in weights]
        table[weights.index(max(weights))] += (1 << 24) - sum(table)
        stream = self.stream()
        found = [symbols[stream.symbol(table)] for _ in range(count)]
        stream.end()
        return found

    def floats(self, count, kind):
        size = {"float32": 4, "bfloat16": 2, "float16": 2}[kind]
        if self.numbers("B", 1)[0] == 0:
            words = self.numbers("I" if size == 4 else "H", count)
        else:
            top = self.histogram(count)
            rest = self.take((size - 1) * count)
            words = []
            for i, high in enumerate(top):
                rotated = int.from_bytes(rest[(size - 1) * i : (size - 1) * (i + 1)] + bytes([high]), "little")
                words.append(rotated >> 1 | (rotated & 1) << (8 * size - 1))
        if kind == "float16":
            return [struct.unpack("<e", struct.pack("<H", word))[0] for word in words]
        return [struct.unpack("<f", struct.pack("<I", word << 32 - 8 * size))[0] for word in words]


def philox(counter, key):
    """One block of Philox4x64-10: four outputs."""
    a, b, c, d = counter, 0, 0, 0
    k, m = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = right >> 64 ^ b ^ k, right & U64, left >> 64 ^ d ^ m, left & U64
        k, m = (k + 0x9E3779B97F4A7C15) & U64, (m + 0xBB67AE8584CAA73B) & U64
    return a, b, c, d


def philox_mask(seed, names, first, last, count):
    hasher = hashlib.blake2b(struct.pack("<Q", seed), digest_size=16, person=b"fedsrd-philox-v1")
    for name in names:
        hasher.update(b"s" + struct.pack("<Q", len(name.encode())) + name.encode())
    key = struct.unpack("<2Q", hasher.digest())
    raw = [word for block in range(1, count // 8 + 2) for word in philox(block, key)]
    words = [half for word in raw for half in (word & 0xFFFFFFFF, word >> 32)]
    return [e for e in range(count) if first <= words[e] <= last]


def gap_table(ones, places):
    q, power, starts = (places - ones) / places, 1.0, []
    for j in range(256):
        starts.append(math.floor((1.0 - power) * float((1 << 24) - 256)) + j)
        power *= q
    starts.append(1 << 24)
    return [b - a for a, b in itertools.pairwise(starts)]


def gaps(body, listed):
    """listed: (role, shape) of each listed tensor; gives each one's positions."""
    component_count, component_of = [], []
    for role, shape in listed:
        columns = shape[-1] if shape else 1
        if role == "lora_B":
            component_count.append(columns)
            component_of.append(lambda element, columns=columns: element % columns)
        else:
            component_count.append(math.prod(shape[:-1]))
            component_of.append(lambda element, columns=columns: element // columns)
    classes = iter(body.histogram(sum(component_count)))
    places = {}
    for number, (_, shape) in enumerate(listed):
        own = [next(classes) for _ in range(component_count[number])]
        for element in range(math.prod(shape)):
            places.setdefault(own[component_of[number](element)], []).append((number, element))
    counts = {c: body.numbers("Q", 2) for c in sorted(places)}
    stream = body.stream()
    found = [[] for _ in listed]
    for c in sorted(places):
        ones, symbols = counts[c]
        table, at = gap_table(ones, len(places[c])), 0
        for _ in range(symbols):
            symbol = stream.symbol(table)
            at += symbol
            if symbol < 255:
                number, element = places[c][at]
                found[number].append(element)
                at += 1
    stream.end()
    return [sorted(positions) for positions in found]


def draws(body, names):
    """{name: (seed, first word, last word)} of the drawn tensors."""
    if not names:
        return {}
    count = body.numbers("B", 1)[0]
    assert count
    known = [struct.unpack("<QII", body.take(16)) for _ in range(count)]
    assert all(first <= last for _, first, last in known)
    chosen = body.numbers("B", len(names)) if count > 1 else [0] * len(names)
    assert set(chosen) == set(range(count))
    return {name: known[number] for name, number in zip(names, chosen, strict=True)}


def table_digest(tensors):
    hasher = hashlib.blake2b(digest_size=16, person=b"fedsrd-tensors")
    for name, role, shape in tensors:
        hasher.update(struct.pack("<Q", len(name.encode())) + name.encode())
        hasher.update(struct.pack("<Q", len(role.encode())) + role.encode())
        hasher.update(struct.pack("<Q", len(shape)))
        for dimension in shape:
            hasher.update(struct.pack("<Q", dimension))
    return hasher.digest()


def read(payload, tensors):
    """{name: {position: value}} of a delta payload; tensors: (name, role, shape)."""
    assert hashlib.blake2b(payload[:-16], digest_size=16).digest() == payload[-16:]
    magic, version, kind, flags, coding, type_, reserved, block, _, _, digest = struct.unpack(
        "<4sBBBBB3sIII16s", payload[:40]
    )
    assert (magic, version, flags, reserved) == (b"FSRD", 4, 0, bytes(3))
    assert kind in (1, 2, 3)
    assert table_digest(tensors) == digest
    elements = {name: math.prod(shape) for name, _, shape in tensors}
    body = Bytes(payload[40:-16])
    packed = body.take((len(tensors) + 3) // 4)
    travels = {name: packed[i // 4] >> 2 * (i % 4) & 3 for i, (name, _, _) in enumerate(tensors)}
    assert kind != 3 or (set(travels.values()) <= {0, 1} and type_ in (0, 1))
    drawn = draws(body, [name for name, _, _ in tensors if travels[name] == 3])
    listed = [(name, role, shape) for name, role, shape in tensors if travels[name] == 2]
    if coding == 1:
        found = []
        for name, _, _ in listed:
            bits = body.take((elements[name] + 7) // 8)
            found.append([e for e in range(elements[name]) if bits[e // 8] >> e % 8 & 1])
    else:
        found = gaps(body, [(role, shape) for _, role, shape in listed]) if listed else []
    remaining = iter(found)
    positions = {}
    for name, how in travels.items():
        if how == 1:
            positions[name] = range(elements[name])
        elif how == 2:
            positions[name] = next(remaining)
        elif how == 3:
            seed, first, last = drawn[name]
            positions[name] = philox_mask(seed, ("mask", name), first, last, elements[name])
    assert all(len(where) for where in positions.values())
    count = sum(len(where) for where in positions.values())
    if not positions:
        values = iter(())
    elif type_ <= 3:
        values = iter(body.floats(count, ["", "float32", "bfloat16", "float16"][type_]))
    else:
        blocks = {name: -(-elements[name] // block) for name in positions}
        scales = iter(body.floats(sum(blocks.values()), "bfloat16"))
        own = {name: [next(scales) for _ in range(blocks[name])] for name in positions}
        levels = iter(body.histogram(count))
        limit = {4: 127, 5: 7, 6: 1, 7: 3, 8: 2}[type_]
        values = iter([(next(levels) - limit) * own[name][e // block] for name in positions for e in positions[name]])
    assert body.at == len(body.data)
    return {name: {e: next(values) for e in where} for name, where in positions.items()}


def integers(payload, tensors, count):
    """The integers of a sum, from 0 to 2^k - 1."""
    magic, version, kind, flags, coding, type_, reserved, bits, _, _, digest = struct.unpack(
        "<4sBBBBB3sIII16s", payload[:40]
    )
    assert (magic, version, kind, flags, coding, type_, reserved) == (b"FSRD", 4, 4, 0, 0, 0, bytes(3))
    assert digest == table_digest(tensors)
    assert hashlib.blake2b(payload[:-16], digest_size=16).digest() == payload[-16:]
    assert 1 <= bits <= 32
    fields = 64 // bits
    words = struct.unpack(f"<{(len(payload) - 56) // 8}Q", payload[40:-16])
    assert len(words) == -(-count // fields)
    assert all(word >> (bits * fields) == 0 for word in words)
    return [words[i % len(words)] >> (i // len(words) * bits) & ((1 << bits) - 1) for i in range(count)]

"""A budget of bytes: what `core.sparsify.fitted` chooses, measured by the payloads that travel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd import wire
from fedsrd.core import sparsify
from fedsrd.core.tensors import SparseTensor, TensorSpec, TensorTable
from fedsrd.federation.transition import Codec

VALUES = ["float32", "bfloat16", "float16", "int8", "int4", "int3", "int2", "ternary"]
KINDS = ["normal", "heavy", "sparse", "rows", "columns", "tiny"]


def table_of(shapes):
    """LoRA pairs of these (out_features, in_features, rank), and a plain vector."""
    specs = []
    for place, (rows, columns, rank) in enumerate(shapes):
        specs.append(TensorSpec.named(f"m{place}.lora_B.weight", (rows, rank)))
        specs.append(TensorSpec.named(f"m{place}.lora_A.weight", (rank, columns)))
    return TensorTable((*specs, TensorSpec("scale", (257,))))


def drawn(kind, shape, random):
    """Changes of one kind, float32."""
    values = random.standard_normal(shape)
    if kind == "heavy":
        values = random.standard_t(2, shape)
    elif kind == "sparse":
        values *= random.random(shape) < 0.3
    elif kind == "rows":
        values *= np.exp(2 * random.standard_normal((shape[0], *[1] * (len(shape) - 1))))
    elif kind == "columns":
        values *= np.exp(2 * random.standard_normal(shape[-1]))
    elif kind == "tiny":
        values *= 1e-20
    return torch.from_numpy(1e-3 * values).float()


def setting(shapes, kind, seed):
    """A table, changes of it, and the tensors before and after."""
    table, random = table_of(shapes), np.random.default_rng(seed)
    changes = {spec.name: drawn(kind, spec.shape, random) for spec in table.specs}
    before = {spec.name: torch.from_numpy(random.standard_normal(spec.shape)).float() for spec in table.specs}
    after = {name: tensor + changes[name] for name, tensor in before.items()}
    return table, changes, before, after


def scores_of(how, changes, before, after):
    if how == "magnitude":
        return {name: delta.abs() for name, delta in changes.items()}
    return {name: sparsify.importance(name, delta, before, after) for name, delta in changes.items()}


def whole(changes):
    return {name: SparseTensor.from_mask(delta, delta != 0) for name, delta in changes.items()}


def highest(changes, scores):
    """The least that can be sent."""
    most = max(float(tensor.max()) for tensor in scores.values())
    return {
        name: SparseTensor.from_mask(delta, (scores[name] == most) & (delta != 0)) for name, delta in changes.items()
    }


def codec_of(table, values):
    threshold = None if values in ("float32", "bfloat16", "float16") else 1.0
    return Codec(table, wire.WireOptions(values=values, threshold=threshold), 3)


def is_the_highest(found, changes, scores):
    """Whether every element that travels counts at least as much as every one that does not, and values are theirs."""
    sent = {name: torch.zeros(delta.shape, dtype=torch.bool) for name, delta in changes.items()}
    for name, sparse in found.items():
        sent[name].view(-1)[sparse.positions] = True
        assert torch.equal(sparse.values, changes[name].reshape(-1)[sparse.positions])
        assert bool((sparse.values != 0).all())
    there = torch.cat([scores[name][sent[name]].reshape(-1) for name in changes])
    other = torch.cat([scores[name][~sent[name] & (changes[name] != 0)].reshape(-1) for name in changes])
    return not len(there) or not len(other) or float(there.min()) > float(other.max())


shapes = st.lists(
    st.tuples(st.integers(64, 400), st.integers(64, 400), st.sampled_from([4, 16, 64])), min_size=1, max_size=3
)


@pytest.mark.parametrize("how", ["magnitude", "importance"])
@pytest.mark.parametrize("values", VALUES)
@given(shapes, st.sampled_from(KINDS), st.floats(0.03, 0.9), st.integers(0, 2**31))
@settings(max_examples=60)
def test_the_payload_has_the_bytes_that_are_wanted(how, values, shapes, kind, share, seed):
    table, changes, before, after = setting(shapes, kind, seed)
    scores = scores_of(how, changes, before, after)
    codec = codec_of(table, values)
    all_of_it = codec.size(whole(changes))
    wanted = codec.size({}) + share * (all_of_it - codec.size({}))
    found = sparsify.fitted(changes, scores, codec.size, wanted)
    # In a payload of some hundred bytes one element more or less, and what it does to its block, may be more than that.
    if wanted > 2000:
        assert codec.size(found) == pytest.approx(wanted, rel=0.02)
    assert codec.size(found) <= max(1.02 * wanted, codec.size(highest(changes, scores)))
    assert is_the_highest(found, changes, scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_the_scores_is_enough(kind, monkeypatch):
    """A stride that meets only some columns, as 2 ** 20 scores of many more do."""
    monkeypatch.setattr(sparsify, "SAMPLE", 1 << 12)
    table, changes, before, after = setting([(1024, 1024, 16)] * 2, kind, 1)
    scores = scores_of("importance", changes, before, after)
    codec = codec_of(table, "int4")
    all_of_it = codec.size(whole(changes))
    for share in (0.1, 0.5, 0.9):
        wanted = share * all_of_it
        assert codec.size(sparsify.fitted(changes, scores, codec.size, wanted)) == pytest.approx(wanted, rel=0.02)


UGLY = {
    "zeros": lambda shape, random: torch.zeros(shape),
    "equal": lambda shape, random: torch.full(shape, 1e-3),
    "two values": lambda shape, random: torch.from_numpy(random.choice([-1e-3, 2e-3], shape)).float(),
    "one huge": lambda shape, random: drawn("normal", shape, random).index_fill_(-1, torch.tensor([0]), 1e30),
    "one of all": lambda shape, random: torch.zeros(shape).index_fill_(-1, torch.tensor([0]), 1e-3),
    "denormal": lambda shape, random: drawn("normal", shape, random) * 1e-38,
    "normal": lambda shape, random: drawn("normal", shape, random),
}


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8", "ternary"])
@pytest.mark.parametrize("kind", UGLY)
@pytest.mark.parametrize("wanted", [1e-3, 50.0, 300.0, 3000.0, 1e9])
def test_ugly_changes_and_budgets(kind, values, wanted):
    table = table_of([(96, 128, 8), (40, 64, 4)])
    random = np.random.default_rng(0)
    changes = {spec.name: UGLY[kind](spec.shape, random) for spec in table.specs}
    scores = {name: delta.abs() for name, delta in changes.items()}
    codec = codec_of(table, values)
    found = sparsify.fitted(changes, scores, codec.size, wanted)
    assert is_the_highest(found, changes, scores)
    count = sum(sparse.count for sparse in found.values())
    there = sum(int((delta != 0).sum()) for delta in changes.values())
    if wanted == 1e9:
        assert count == there
    # Above what is wanted only where fewer cannot be: the ties of the highest score travel together.
    assert codec.size(found) <= max(1.02 * wanted, codec.size(highest(changes, scores)))


@pytest.mark.parametrize("values", ["float32", "int4"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_few_sizes_are_measured(values, share):
    """Each is a whole payload's."""
    table, changes, before, after = setting([(1024, 1024, 16)] * 2, "normal", 1)
    codec, measured = codec_of(table, values), []

    def size(found):
        measured.append(codec.size(found))
        return measured[-1]

    sparsify.fitted(changes, scores_of("importance", changes, before, after), size, share * codec.size(whole(changes)))
    assert len(measured) <= 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(bad):
    changes = {"w": torch.ones(40)}
    scores = {"w": torch.ones(40)}
    scores["w"][17] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        sparsify.fitted(changes, scores, lambda found: 1, 10.0)

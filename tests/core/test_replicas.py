"""Factors that two ends add alike, and the start that they expand alike."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.core.factors import (
    LoraPair,
    ModuleShape,
    ShapeTable,
    Slot,
    SparseTensor,
    add,
    difference,
    digest,
    initial_factors,
)
from fedsrd.wire.payload import Kind, decode_delta, encode_delta

TABLE = ShapeTable((ModuleShape("a", 6, 5, 2), ModuleShape("b", 1, 1, 1)))


@given(st.integers(0, 2**31), st.lists(st.sampled_from(["sparse", "dense", "missing"]), min_size=4, max_size=4))
def test_adding_is_one_float32_addition_an_element(seed, kinds):
    random = np.random.default_rng(seed)
    state = initial_factors(TABLE, seed)
    delta, expected = {}, {}
    for (slot, shape), kind in zip(TABLE.shapes.items(), kinds, strict=True):
        old = getattr(state[slot.module], slot.factor)
        change = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        mask = torch.from_numpy(random.random(shape) < 0.4)
        expected[slot] = old.numpy().copy()
        if kind == "dense":
            delta[slot] = SparseTensor.from_dense(change)
            expected[slot] += change.numpy()
        elif kind == "sparse":
            delta[slot] = SparseTensor.from_mask(change, mask)
            expected[slot][mask.numpy()] += change.numpy()[mask.numpy()]
    after = add(state, delta)
    for slot, array in expected.items():
        new, old = (getattr(factors[slot.module], slot.factor) for factors in (after, state))
        assert new.numpy().tobytes() == array.tobytes()
        assert (new is old) == (slot not in delta)
    # The other end reads the delta from bytes, and holds the same bits.
    read = decode_delta(encode_delta(delta, TABLE, Kind.DOWNLINK, 1, 0), TABLE)[1]
    assert digest(add(initial_factors(TABLE, seed), read)) == digest(after)


def test_the_difference_undoes_an_exact_addition():
    state = {"a": LoraPair(torch.zeros(6, 2), torch.ones(2, 5))}
    delta = {Slot("a", "A"): SparseTensor((2, 5), torch.tensor([3, 9]), torch.tensor([0.5, -4.0]))}
    found = dict(difference(add(state, delta), state))
    assert not found[Slot("a", "B")].any()
    assert torch.equal(found[Slot("a", "A")], delta[Slot("a", "A")].dense())


def test_a_delta_of_an_unknown_module_is_refused():
    with pytest.raises(KeyError):
        add(initial_factors(TABLE, 0), {Slot("x", "B"): SparseTensor((1, 1), None, torch.ones(1))})


@given(st.integers(0, 12 + 10 + 1 + 1 - 1), st.integers(0, 31))
def test_the_digest_sees_every_bit_of_every_factor(element, bit):
    state = initial_factors(TABLE, 0)
    whole = torch.cat([tensor.reshape(-1) for pair in state.values() for tensor in pair]).numpy().copy()
    whole.view(np.uint32)[element] ^= np.uint32(1 << bit)
    moved, offset = {}, 0
    for name, pair in state.items():
        parts = []
        for tensor in pair:
            parts.append(torch.from_numpy(whole[offset : offset + tensor.numel()].reshape(tensor.shape)))
            offset += tensor.numel()
        moved[name] = LoraPair(*parts)
    assert digest(moved) != digest(state)


def test_the_digest_is_frozen_and_sees_shapes():
    assert digest({"m": LoraPair(torch.zeros(2, 1), torch.tensor([[1.0, -2.0]]))}) == FROZEN_DIGEST
    assert digest({"m": LoraPair(torch.zeros(1, 2), torch.tensor([[1.0, -2.0]]))}) != FROZEN_DIGEST


FROZEN_DIGEST = "83791adac83c163fe1d168dfaf793c4c99ed8820b31934a5e2925a918efe5388"


@given(st.sampled_from(["name", "out_features", "in_features", "rank"]), st.integers(0, 2))
def test_the_table_digest_sees_every_field_of_every_module(field, which):
    modules = [ModuleShape(f"m{i}", 3, 4, 2) for i in range(3)]
    before = ShapeTable(tuple(modules)).digest
    old = getattr(modules[which], field)
    modules[which] = modules[which]._replace(**{field: "x" + old[1:] if field == "name" else old + 1})
    assert ShapeTable(tuple(modules)).digest != before
    assert len(before) == 16


def test_names_that_run_together_have_other_table_digests():
    def of(*modules):
        return ShapeTable(tuple(modules)).digest

    tail = ModuleShape("b", 1, 2, 3)
    # A name that contains the next module's packed sizes and name must not pass for two modules.
    glued = "a" + struct.pack("<4Q", 1, 1, 2, 3).decode("latin-1") + "b"
    assert of(ModuleShape("a", 1, 2, 3), tail) != of(ModuleShape(glued, 1, 2, 3))
    assert of() != of(tail)


@pytest.mark.parametrize("in_features", [64, 1000])
def test_the_start_is_uniform_to_the_bound_of_peft(in_features):
    table = ShapeTable((ModuleShape("q", 7, in_features, 32), ModuleShape("k", 7, in_features, 32)))
    start = initial_factors(table, 5)
    bound = 1 / math.sqrt(in_features)
    for pair in start.values():
        assert not pair.B.any()
        assert pair.A.dtype == torch.float32
        scaled = np.sort((pair.A.double().numpy().ravel() / bound + 1) / 2)
        assert scaled[0] >= 0
        assert scaled[-1] <= 1 + 1e-6
        # Kolmogorov-Smirnov: the largest distance from the uniform distribution, far beyond its 99.99 % quantile.
        ranks = np.arange(1, scaled.size + 1) / scaled.size
        assert np.abs(ranks - scaled).max() < 2.3 / math.sqrt(scaled.size)
    assert not torch.equal(start["q"].A, start["k"].A)
    assert not torch.equal(start["q"].A, initial_factors(table, 6)["q"].A)
    # A module's start follows from its own name, not from its neighbours.
    assert torch.equal(initial_factors(ShapeTable(table.modules[::-1]), 5)["q"].A, start["q"].A)


def test_peft_itself_starts_within_the_same_bound():
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(400, 8))
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=64, target_modules=["0"]))
    theirs = next(p for name, p in adapted.named_parameters() if "lora_A" in name).detach()
    ours = initial_factors(ShapeTable((ModuleShape("0", 8, 400, 64),)), 0)["0"].A
    assert theirs.shape == ours.shape
    for tensor in (theirs, ours):
        assert 0.999 * 0.05 < float(tensor.abs().max()) <= 0.05 * (1 + 1e-6)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)

"""Tensors that two ends add alike, and the start that they expand alike."""

import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.core.lora import LoraModule, LoraPair, pairs_of, table_of, tensor_name, tensors_of
from fedsrd.core.tensors import (
    SparseTensor,
    TensorSpec,
    TensorTable,
    add,
    difference,
    digest,
    initial_tensors,
)
from fedsrd.wire.payload import Kind, decode_delta, encode_delta

TABLE = table_of([LoraModule("a", 6, 5, 2), LoraModule("b", 1, 1, 1)])
MIXED = TensorTable((*TABLE.specs, TensorSpec("scale", (9,)), TensorSpec("gate", ()), TensorSpec("kernel", (2, 3, 4))))


@given(st.integers(0, 2**31), st.lists(st.sampled_from(["sparse", "dense", "missing"]), min_size=7, max_size=7))
def test_adding_is_one_float32_addition_an_element(seed, kinds):
    random = np.random.default_rng(seed)
    state = initial_tensors(MIXED, seed)
    delta, expected = {}, {}
    for (name, shape), kind in zip(MIXED.shapes.items(), kinds, strict=True):
        change = torch.from_numpy(np.asarray(random.standard_normal(shape), dtype=np.float32))
        mask = torch.from_numpy(np.asarray(random.random(shape) < 0.4))
        expected[name] = state[name].numpy().copy()
        if kind == "dense":
            delta[name] = SparseTensor.from_dense(change)
            expected[name] += change.numpy()
        elif kind == "sparse":
            delta[name] = SparseTensor.from_mask(change, mask)
            expected[name][mask.numpy()] += change.numpy()[mask.numpy()]
    after = add(state, delta)
    for name, array in expected.items():
        assert after[name].numpy().tobytes() == array.tobytes()
        assert after[name].shape == state[name].shape
        assert (after[name] is state[name]) == (name not in delta)
    # The other end reads the delta from bytes, and holds the same bits.
    read = decode_delta(encode_delta(delta, MIXED, Kind.DOWNLINK, 1, 0), MIXED)[1]
    assert digest(add(initial_tensors(MIXED, seed), read)) == digest(after)


def test_the_difference_undoes_an_exact_addition():
    state = tensors_of({"a": LoraPair(torch.zeros(6, 2), torch.ones(2, 5))})
    name = tensor_name("a", "A")
    delta = {name: SparseTensor((2, 5), torch.tensor([3, 9]), torch.tensor([0.5, -4.0]))}
    found = dict(difference(add(state, delta), state))
    assert not found[tensor_name("a", "B")].any()
    assert torch.equal(found[name], delta[name].dense())


def test_a_delta_of_an_unknown_tensor_is_refused():
    with pytest.raises(KeyError):
        add(initial_tensors(TABLE, 0), {tensor_name("x", "B"): SparseTensor((1, 1), None, torch.ones(1))})


@given(st.integers(0, 12 + 10 + 1 + 1 + 9 + 1 + 24 - 1), st.integers(0, 31))
def test_the_digest_sees_every_bit_of_every_tensor(element, bit):
    state = initial_tensors(MIXED, 0)
    whole = torch.cat([tensor.reshape(-1) for tensor in state.values()]).numpy().copy()
    assert whole.size == MIXED.elements == 12 + 10 + 1 + 1 + 9 + 1 + 24
    whole.view(np.uint32)[element] ^= np.uint32(1 << bit)
    moved, offset = {}, 0
    for name, tensor in state.items():
        moved[name] = torch.from_numpy(whole[offset : offset + tensor.numel()].reshape(tensor.shape))
        offset += tensor.numel()
    assert digest(moved) != digest(state)


def test_the_digest_is_frozen_and_sees_shapes():
    assert digest(tensors_of({"m": LoraPair(torch.zeros(2, 1), torch.tensor([[1.0, -2.0]]))})) == FROZEN_DIGEST
    assert digest(tensors_of({"m": LoraPair(torch.zeros(1, 2), torch.tensor([[1.0, -2.0]]))})) != FROZEN_DIGEST
    assert digest({"m": torch.zeros(2), "n": torch.zeros(())}) != digest({"m": torch.zeros(()), "n": torch.zeros(2)})
    # Name's length, number of dimensions, dimensions (uint64 each), name, float32 bits; tensor by tensor.
    hasher = hashlib.sha256()
    hasher.update(struct.pack("<4Q", 15, 2, 2, 1) + b"m.lora_B.weight" + bytes(8))
    hasher.update(struct.pack("<4Q", 15, 2, 1, 2) + b"m.lora_A.weight" + struct.pack("<2f", 1, -2))
    assert hasher.hexdigest() == FROZEN_DIGEST


FROZEN_DIGEST = "3c51ddc5fc62fcf4490ffa5fc52fb4f7351f59f001e1064daedf230166ac0f83"


@given(st.sampled_from(["name", "out_features", "in_features", "rank"]), st.integers(0, 2))
def test_the_table_digest_sees_every_field_of_every_module(field, which):
    modules = [LoraModule(f"m{i}", 3, 4, 2) for i in range(3)]
    before = table_of(modules).digest
    old = getattr(modules[which], field)
    modules[which] = modules[which]._replace(**{field: "x" + old[1:] if field == "name" else old + 1})
    assert table_of(modules).digest != before
    assert len(before) == 16


@given(st.sampled_from([{"name": "x"}, {"role": "plain"}, {"role": "lora_A"}, {"shape": (4, 3)}, {"shape": (12,)}]))
def test_the_table_digest_sees_every_field_of_every_tensor(changed):
    specs = [TensorSpec(f"m{i}", (3, 4), "lora_B") for i in range(3)]
    digests = {TensorTable(tuple(specs)).digest}
    for which in range(3):
        digests.add(TensorTable((*specs[:which], specs[which]._replace(**changed), *specs[which + 1 :])).digest)
    assert len(digests) == 4


def test_names_that_run_together_have_other_table_digests():
    def of(*specs):
        return TensorTable(specs).digest

    def packed(number):
        return struct.pack("<Q", number).decode("latin-1")

    tail = TensorSpec("b", (3,))
    # A name that contains its own role and shape and the next tensor's name must not pass for two tensors.
    glued = "a" + packed(5) + "plain" + packed(2) + packed(1) + packed(2) + packed(1) + "b"
    assert of(TensorSpec("a", (1, 2)), tail) != of(TensorSpec(glued, (3,)))
    # Nor may one that contains the role, or dimensions that could be the next tensor's sizes.
    assert of(TensorSpec("a" + packed(5) + "plain", (1,))) != of(TensorSpec("a", (1,)))
    assert of(TensorSpec("a", (1, 2)), TensorSpec("", (3,))) != of(TensorSpec("a", (1,)), TensorSpec("", (2, 3)))
    assert of() != of(tail)


@pytest.mark.parametrize("in_features", [64, 1000])
def test_the_start_is_uniform_to_the_bound_of_peft(in_features):
    modules = [LoraModule("q", 7, in_features, 32), LoraModule("k", 7, in_features, 32)]
    table = table_of(modules)
    start = pairs_of(initial_tensors(table, 5))
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
    assert not torch.equal(start["q"].A, pairs_of(initial_tensors(table, 6))["q"].A)
    # A module's start follows from its own name, not from its neighbours.
    assert torch.equal(pairs_of(initial_tensors(table_of(modules[::-1]), 5))["q"].A, start["q"].A)


def test_peft_itself_starts_within_the_same_bound():
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(400, 8))
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=64, target_modules=["0"]))
    theirs = next(p for name, p in adapted.named_parameters() if "lora_A" in name).detach()
    ours = initial_tensors(table_of([LoraModule("0", 8, 400, 64)]), 0)[tensor_name("0", "A")]
    assert theirs.shape == ours.shape
    for tensor in (theirs, ours):
        assert 0.999 * 0.05 < float(tensor.abs().max()) <= 0.05 * (1 + 1e-6)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)

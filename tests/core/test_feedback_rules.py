"""`core.feedback` against a dense float64 reading of both rules, tensor by tensor and round by round.

EF14 (arXiv 1809.07599): e <- decay e + delta, send C(e), e <- e - C(e). EF21 (arXiv 2106.05203): send C(delta - g),
g <- g + C(delta - g). A round in which the client sits out, or in which its update does not count, leaves both alone.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.core import feedback
from fedsrd.core.tensors import SparseTensor, add_to

SHAPES = st.dictionaries(
    st.sampled_from(["m.lora_B.weight", "m.lora_A.weight", "scale", "conv"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    min_size=1,
)
UGLY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e-8, 3e4, -1e10])
PRESENT = st.lists(st.sampled_from(["there", "away", "lost"]), min_size=1, max_size=6)


def drawn(shape, random, ugly):
    values = random.standard_normal(shape) * 10.0 ** random.integers(-3, 3)
    return torch.from_numpy(np.where(random.random(shape) < 0.2, ugly, values)).float()


def compressed(tensor, random, how):
    """What arrives of a tensor, in one of the ways in which it may: whole, some elements, rounded, nothing at all."""
    if how == "missing":
        return None
    if how == "whole":
        return SparseTensor.from_dense(tensor)
    mask = torch.from_numpy(random.random(tuple(tensor.shape)) < (0.0 if how == "none of it" else 0.4))
    found = SparseTensor.from_mask(tensor, mask)
    if how == "rounded":
        found = SparseTensor(found.shape, found.positions, found.values.bfloat16().float())
    return found


def close(found, expected, scale):
    """Equal to float32's rounding of numbers as large as any that went in."""
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-6, atol=1e-5 * max(scale, 1e-30))


@pytest.mark.parametrize("how", ["ef14", "ef21"])
@given(SHAPES, PRESENT, UGLY, st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_both_rules_are_their_dense_reading(how, shapes, present, ugly, decay, seed):
    random = np.random.default_rng(seed)
    memory, dense = {}, {name: np.zeros(shape) for name, shape in shapes.items()}
    largest = 0.0
    for presence in present:
        deltas = {name: drawn(shape, random, ugly) for name, shape in shapes.items()}
        if presence == "away":
            continue
        wanted, arrives, following = {}, {}, {}
        for name, delta in deltas.items():
            wanted[name] = feedback.compensated(how, name, delta, memory, decay)
            exact = delta.double().numpy()
            largest = max(largest, float(np.abs(exact).max()) + float(np.abs(dense[name]).max()))
            e = decay * dense[name] + exact if how == "ef14" else exact - dense[name]
            close(wanted[name], e, largest)
            way = random.choice(["missing", "whole", "some", "rounded", "none of it"])
            sent = compressed(wanted[name], random, way)
            if sent is not None:
                arrives[name] = sent
            c = np.zeros(delta.shape) if sent is None else sent.dense().double().numpy()
            following[name] = e - c if how == "ef14" else dense[name] + c
        before = {name: tensor.clone() for name, tensor in memory.items()}
        sent_before = {name: sparse.values.clone() for name, sparse in arrives.items()}
        found = feedback.remembered(how, wanted, arrives, memory)
        # Nothing that went in has changed: the memory stays for a round that does not count, what is sent travels.
        assert all(torch.equal(memory[name], tensor) for name, tensor in before.items())
        assert all(torch.equal(arrives[name].values, values) for name, values in sent_before.items())
        if presence == "lost":
            continue
        memory, dense = found, following
        for name, tensor in dense.items():
            kept = memory.get(feedback.key(how, name))
            close(torch.zeros(tensor.shape) if kept is None else kept, tensor, largest)


@given(SHAPES, st.integers(0, 2**31))
def test_without_feedback_nothing_is_added_or_kept(shapes, seed):
    random = np.random.default_rng(seed)
    memory = {"other": torch.ones(3), "residual/scale": torch.ones(1)}
    deltas = {name: drawn(shape, random, 0.0) for name, shape in shapes.items()}
    for name, delta in deltas.items():
        assert feedback.compensated("none", name, delta, memory, 0.5) is delta
    found = feedback.remembered("none", deltas, {}, memory)
    assert found == memory
    assert found is not memory


@pytest.mark.parametrize("how", ["ef14", "ef21"])
def test_what_else_is_remembered_stays(how):
    """A factor that does not move this round keeps its residual; a method's own entries are its own."""
    kept = {feedback.key(how, "A"): torch.full((2, 2), 7.0), "control/B": torch.ones(2)}
    change = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    found = feedback.remembered(how, {"B": change}, {"B": SparseTensor.from_mask(change, change > 2)}, kept)
    assert found.keys() == {*kept, feedback.key(how, "B")}
    assert all(found[name] is tensor for name, tensor in kept.items())
    expected = [[1.0, -2.0], [0.0, 0.0]] if how == "ef14" else [[0.0, 0.0], [0.0, 4.0]]
    assert found[feedback.key(how, "B")].tolist() == expected


@given(st.integers(1, 40), st.floats(-3, 3), st.integers(0, 2**31))
def test_adding_a_sparse_change_is_adding_it_dense(size, factor, seed):
    random = np.random.default_rng(seed)
    tensor, change = drawn((size,), random, 0.0), drawn((size,), random, 0.0)
    for sparse in (SparseTensor.from_dense(change), compressed(change, random, "some")):
        expected = tensor.double() + factor * sparse.dense().double()
        target = tensor.clone()
        assert add_to(target, sparse, factor) is target
        torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-3)

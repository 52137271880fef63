"""Error feedback against plain float64 readings of its formulas, with what compresses losing something each time."""

import numpy as np
import pytest
import torch

from fedsrd.core import feedback
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.wire import WireOptions, quantise

SHAPES = {"q.lora_B.weight": (20, 3), "scale": (17,), "gate": (), "never": (4, 4)}
TABLE = TensorTable(tuple(TensorSpec.named(name, shape) for name, shape in SHAPES.items()))
LOSSY = [
    WireOptions(values=values, rounding=rounding)
    for values in ("bfloat16", "int4", "int3", "ternary")
    for rounding in ("random", "nearest")
]


def compressed(wanted, options, number):
    """What arrives: a few elements of each tensor, in few bits; "never" is not sent."""
    sent = {}
    for place, (name, tensor) in enumerate(wanted.items()):
        way = (place + number) % 3
        if name == "never":
            continue
        if way == 0:
            sent[name] = SparseTensor.from_dense(tensor)
        elif way == 1:
            sent[name] = SparseTensor.from_draw(tensor, name, Draw(number, 0.4, 0.3))
        else:
            sent[name] = SparseTensor.from_mask(tensor, tensor.abs() >= tensor.abs().median())
    return quantise(sent, TABLE, options, number).delta()


def changes(number):
    random = np.random.default_rng(number)
    return {
        name: torch.from_numpy(np.asarray(random.standard_normal(shape), np.float32)) for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("options", LOSSY, ids=lambda options: f"{options.values}-{options.rounding}")
@pytest.mark.parametrize("decay", [1.0, 0.9, 0.25])
def test_ef14_keeps_what_is_lost(options, decay):
    memory = {"other": torch.ones(2)}
    residual = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in range(8):
        delta = changes(number)
        wanted = {name: feedback.compensated("ef14", name, tensor, memory, decay) for name, tensor in delta.items()}
        before = {name: tensor.clone() for name, tensor in wanted.items()}
        arrives = compressed(wanted, options, number)
        after = feedback.remembered("ef14", wanted, arrives, memory)
        for name, tensor in delta.items():
            e = decay * residual[name] + tensor.double().numpy()
            assert np.abs(before[name].double().numpy() - e).max() <= 1e-5
            sent = arrives[name].dense().double().numpy() if name in arrives else np.zeros(SHAPES[name])
            residual[name] = e - sent
            total[name] += tensor.double().numpy() - sent
            kept = after[feedback.key("ef14", name)]
            assert kept.shape == SHAPES[name]
            assert np.abs(kept.double().numpy() - residual[name]).max() <= 1e-5
            # Sent and kept are what there was, to the rounding of one float32 difference.
            lost = kept.double().numpy() + sent - before[name].double().numpy()
            assert np.abs(lost).max() <= np.finfo(np.float32).eps * np.abs(before[name].numpy()).max()
            if decay == 1.0:
                assert np.abs(kept.double().numpy() - total[name]).max() <= 1e-5
        assert after["other"] is memory["other"]
        memory = after
    assert set(memory) == {"other", *(f"residual/{name}" for name in SHAPES)}


@pytest.mark.parametrize("options", LOSSY, ids=lambda options: f"{options.values}-{options.rounding}")
def test_ef21_learns_what_does_not_move(options):
    """The receiver's estimate follows the plain formulas, is the sum of all that arrived, and comes near the change."""
    memory = {"other": torch.ones(2)}
    estimate = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    arrived = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    still = changes(99)
    for number in range(60):
        delta = changes(number) if number < 5 else still
        given = {name: tensor.clone() for name, tensor in delta.items()}
        wanted = {name: feedback.compensated("ef21", name, tensor, memory) for name, tensor in delta.items()}
        kept = {name: tensor.clone() for name, tensor in memory.items()}
        for name, tensor in delta.items():
            assert np.abs(wanted[name].double().numpy() - (tensor.double().numpy() - estimate[name])).max() <= 1e-4
        arrives = compressed(wanted, options, number)
        after = feedback.remembered("ef21", wanted, arrives, memory)
        for name in SHAPES:
            if name in arrives:
                estimate[name] += arrives[name].dense().double().numpy()
                feedback.add_to(arrived[name], arrives[name], 1.0)
                assert torch.equal(after[feedback.key("ef21", name)], arrived[name])
            assert np.abs(arrived[name].double().numpy() - estimate[name]).max() <= 1e-4
            assert torch.equal(delta[name], given[name])
        assert all(torch.equal(memory[name], tensor) for name, tensor in kept.items())
        memory = after
    assert set(memory) == {"other", *(f"estimate/{name}" for name in SHAPES if name != "never")}
    if options.rounding == "nearest":
        for name in ("q.lora_B.weight", "scale", "gate"):
            assert np.abs(estimate[name] - still[name].double().numpy()).max() <= 0.05


def test_without_feedback_nothing_is_kept():
    delta, memory = changes(0), {"residual/scale": torch.ones(17)}
    for name, tensor in delta.items():
        assert feedback.compensated("none", name, tensor, memory) is tensor
    assert feedback.remembered("none", delta, {}, memory) == memory


def test_adding_in_place_with_a_factor():
    for sparse in (
        SparseTensor((2, 3), None, torch.arange(6.0)),
        SparseTensor((2, 3), torch.tensor([1, 5]), torch.tensor([2.0, 3.0])),
        SparseTensor((2, 3), torch.empty(0, dtype=torch.int64), torch.empty(0)),
    ):
        tensor = torch.ones(2, 3)
        assert feedback.add_to(tensor, sparse, -0.5) is tensor
        assert torch.equal(tensor, 1 - 0.5 * sparse.dense())

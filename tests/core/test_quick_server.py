"""The server's quick way, at layers large enough that it matters: taken, and equal to dense float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.core import decompose, reconstruct
from fedsrd.core.lora import FACTORS, LoraPair, tensor_name
from fedsrd.core.sparse import to_csr
from fedsrd.core.tensors import SparseTensor

M_B, M_A = (tensor_name("m", factor) for factor in FACTORS)


def layer(out=300, inn=220, rank=8, clients=4, density=0.05, moved=0.1, seed=0, zero_B=False):
    """(pair, deltas, weights): A as it starts, B as trained, sparse deltas of which `moved` is the size."""
    rng = np.random.default_rng(seed)
    A = rng.uniform(-1, 1, (rank, inn)) / inn**0.5
    B = np.zeros((out, rank)) if zero_B else rng.standard_normal((out, rank)) * 1e-3
    deltas = []
    for _ in range(clients):
        made = {}
        for name, matrix, size in ((M_B, B, 1e-3), (M_A, A, inn**-0.5)):
            full = torch.from_numpy((rng.standard_normal(matrix.shape) * moved * size).astype(np.float32))
            made[name] = SparseTensor.from_mask(full, torch.from_numpy(rng.random(matrix.shape) < density))
        deltas.append(made)
    weights = rng.random(clients) + 0.1
    pair = LoraPair(*(torch.from_numpy(matrix.astype(np.float32)) for matrix in (B, A)))
    return pair, deltas, list(weights / weights.sum())


def plain(pair, deltas, weights, factor, rank):
    """Dense float64: W, its best approximation, the pseudo-inverse."""
    B, A = (matrix.double().numpy() for matrix in pair)
    W = np.zeros((len(B), A.shape[1]))
    for delta, weight in zip(deltas, weights, strict=True):
        dB, dA = (delta[name].dense().double().numpy() for name in (M_B, M_A))
        W += weight * (B + dB) @ (A + dA)
    if rank is not None:
        u, s, vh = np.linalg.svd(W, full_matrices=False)
        W = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return (W - B @ A) @ np.linalg.pinv(A) if factor == "B" else np.linalg.pinv(B) @ (W - B @ A)


@pytest.fixture
def only_quick(monkeypatch):
    def refuse(*args):
        raise AssertionError("the careful way was taken")

    monkeypatch.setattr(decompose, "_careful_step", refuse)


CASES = {
    "a round": {},
    "the first round": {"zero_B": True},
    "one client": {"clients": 1},
    "small steps": {"moved": 1e-3},
    "large steps": {"moved": 1.0},
    "dense": {"density": 0.9},
    "many clients": {"clients": 60},
}


@pytest.mark.usefixtures("only_quick")
@pytest.mark.parametrize("factor", ["B", "A"])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_real_layers_go_the_quick_way_to_1e_4(case, projected, factor):
    if case == "the first round" and factor == "A":
        return  # B is zero: careful, and nothing to learn
    pair, deltas, weights = layer(**CASES[case])
    rank = 8 if projected else None
    found = decompose.alternate(reconstruct.Mean("m", pair, deltas, weights), factor, rank).double().numpy()
    expected = plain(pair, deltas, weights, factor, rank)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_the_projection_changes_something():
    """Else the test above would pass without it."""
    pair, deltas, weights = layer(moved=1.0)
    mean = reconstruct.Mean("m", pair, deltas, weights)
    with_, without = (decompose.alternate(mean, "B", rank) for rank in (8, None))
    assert float((with_ - without).norm()) > 0.01 * float(without.norm())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 2**31),
)
def test_products_with_the_mean_are_the_dense_ones(out, inn, rank, clients, density, seed):
    pair, deltas, weights = layer(out, inn, rank, clients, density, 0.5, seed)
    if clients > 1:
        del deltas[0][M_A], deltas[1][M_B]
    B, A = (matrix.double() for matrix in pair)
    W = -B @ A
    for delta, weight in zip(deltas, weights, strict=True):
        dB, dA = (
            delta[name].dense().double() if name in delta else torch.zeros_like(like)
            for name, like in ((M_B, B), (M_A, A))
        )
        W += weight * (B + dB) @ (A + dA)
    rng = np.random.default_rng(seed)
    right, left = (torch.from_numpy(rng.standard_normal((n, 3)).astype(np.float32)) for n in (inn, out))
    mean = reconstruct.Mean("m", pair, deltas, weights)
    scale = float(B.norm() * A.norm() + W.norm()) * max(float(right.norm()), float(left.norm()))
    for _ in range(2):
        found = mean.change_times(right, pair.A @ right, "B")
        assert float((found - W @ right.double()).norm()) <= 1e-6 * scale
        found = mean.change_times(left, pair.B.T @ left, "A")
        assert float((found - W.T @ left.double()).norm()) <= 1e-6 * scale
    # W = B' A' + C, with the averages B' and A'.
    average_B, average_A = mean.averages("B")
    assert torch.equal(mean.averages("A")[0], average_A)
    C = W + B @ A - average_B.double() @ average_A.double().T
    assert float((mean.disagreement_times(right, "B") - C @ right.double()).norm()) <= 1e-6 * scale
    assert float((mean.disagreement_times(left, "A") - C.T @ left.double()).norm()) <= 1e-6 * scale


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_compressed_rows_are_the_matrix(rows, columns, density, transposed, seed):
    rng = np.random.default_rng(seed)
    matrix = torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32))
    sparse = SparseTensor.from_mask(matrix, torch.from_numpy(rng.random(matrix.shape) < density))
    found = to_csr(sparse, transposed=transposed).to_dense()
    assert torch.equal(found, sparse.dense().T if transposed else sparse.dense())


@pytest.mark.parametrize("condition", [1.0, 30.0, 3e3, 9e3])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.3])
def test_the_quick_inverse_is_accurate_where_it_is_given(condition, damping):
    rng = np.random.default_rng(1)
    u, v = np.linalg.qr(rng.standard_normal((6, 6)))[0], np.linalg.qr(rng.standard_normal((200, 6)))[0]
    matrix = torch.from_numpy(((u * np.geomspace(1, 1 / condition, 6)) @ v.T).astype(np.float32))
    found = decompose.quick_pseudo_inverse(matrix, 1e-6, damping)
    assert found is not None
    exact = decompose.pseudo_inverse(matrix, 1e-6, damping)
    assert float((found.matrix - exact).norm()) <= 3e-5 * float(exact.norm())
    assert float((found.own - matrix.double() @ exact).norm()) <= 1e-4


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(3, 9), torch.ones(3, 9), torch.eye(3) * 1e-20, torch.eye(3) * 1e20, torch.eye(3) * float("inf")],
)
def test_the_quick_inverse_says_no(matrix):
    assert decompose.quick_pseudo_inverse(matrix, 1e-6, 0.0) is None
    assert decompose.quick_pseudo_inverse(torch.eye(3), 1e-2, 0.0) is None


def test_a_projection_that_does_not_converge_is_done_carefully(monkeypatch):
    """Equal singular values around the rank: the iteration gives up, and the answer is still a best approximation."""
    monkeypatch.setattr(decompose, "MOST_ITERATIONS", 1)
    pair, deltas, weights = layer(moved=1.0, clients=2)
    found = decompose.alternate(reconstruct.Mean("m", pair, deltas, weights), "B", 8).double().numpy()
    expected = plain(pair, deltas, weights, "B", 8)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)

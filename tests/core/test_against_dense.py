"""Sparsify, reconstruct and decompose against the plain, dense float64 reading of the formulas, written here in
numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fedsrd.core import decompose, reconstruct, sparsify
from fedsrd.core.lora import LoraPair, tensors_of
from fedsrd.core.tensors import GlobalState, SparseTensor
from fedsrd.methods import Contribution, ServerContext, get

M_B, M_A = "m.lora_B.weight", "m.lora_A.weight"

# ---- the formulas, as algorithm.md and the paper have them -------------------------------------------------------


def plain_importance_B(dB, A):
    return np.abs(dB) * np.sqrt((A**2).sum(axis=1))


def plain_importance_A(dA, B):
    return np.abs(dA) * np.sqrt((B**2).sum(axis=0))[:, None]


def plain_kurtosis(x):
    x = x.ravel()
    return ((x - x.mean()) ** 4).mean() / ((x - x.mean()) ** 2).mean() ** 2


def plain_prune(delta, scores, ratio):
    return np.where(scores > np.quantile(scores, ratio), delta, 0.0)


def plain_change(B, A, deltas, weights, rank):
    """W - B A, or W_r - B A where a rank is given."""
    W = sum(p * (B + dB) @ (A + dA) for p, (dB, dA) in zip(weights, deltas, strict=True))
    if rank is not None:
        u, s, vh = np.linalg.svd(W, full_matrices=False)
        W = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return W - B @ A


def plain_step(B, A, deltas, weights, round_number, rank):
    change = plain_change(B, A, deltas, weights, rank)
    if round_number % 2:
        return change @ np.linalg.pinv(A, rcond=1e-6)
    return np.linalg.pinv(B, rcond=1e-6) @ change


# ---- draws -------------------------------------------------------------------------------------------------------


@st.composite
def federations(draw):
    """Global (B, A), deltas and weights: any shape, rank 1, one client, many clients, zero deltas, a singular B."""
    out, inn = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    rank = draw(st.integers(1, min(out, inn)))
    clients = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**31))
    kind = draw(st.sampled_from(["plain", "zero deltas", "singular B", "zero B", "tiny", "large"]))
    rng = np.random.default_rng(seed)
    scale = {"tiny": 1e-12, "large": 1e8}.get(kind, 1.0)
    B, A = scale * rng.standard_normal((out, rank)), scale * rng.standard_normal((rank, inn))
    if kind == "singular B" and rank > 1:
        B[:, -1] = B[:, 0]
    if kind == "zero B":
        B[:] = 0
    size = 0.0 if kind == "zero deltas" else 0.3 * scale
    deltas = [
        (
            size * rng.standard_normal((out, rank)) * (rng.random((out, rank)) < 0.5),
            size * rng.standard_normal((rank, inn)) * (rng.random((rank, inn)) < 0.5),
        )
        for _ in range(clients)
    ]
    weights = rng.random(clients) + 0.1
    single = [np.asarray(x, dtype=np.float32) for x in (B, A)]
    return (
        *single,
        [tuple(np.asarray(d, dtype=np.float32) for d in pair) for pair in deltas],
        weights / weights.sum(),
    )


def as_torch(pair):
    return LoraPair(*(torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in pair))


def close(found, expected, scale):
    """Within 1e-4 of the larger of the result's norm and the scale of what it is a difference of."""
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) <= 1e-4 * max(np.linalg.norm(expected), scale)


# ---- sparsify ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_importance(out, inn, rank, seed):
    rng = np.random.default_rng(seed)
    before, after = (
        tensors_of({"m": as_torch((rng.standard_normal((out, rank)), rng.standard_normal((rank, inn))))})
        for _ in range(2)
    )
    dB, dA = rng.standard_normal((out, rank)), rng.standard_normal((rank, inn))
    got_B = sparsify.importance(M_B, torch.from_numpy(dB).float(), before, after)
    got_A = sparsify.importance(M_A, torch.from_numpy(dA).float(), before, after)
    np.testing.assert_allclose(got_B, plain_importance_B(dB, before[M_A].numpy()), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got_A, plain_importance_A(dA, after[M_B].numpy()), rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(1, 5), max_size=3), st.integers(0, 2**31))
def test_importance_of_what_is_no_factor_is_its_magnitude(shape, seed):
    before, after = (
        {"p": torch.from_numpy(np.asarray(np.random.default_rng([seed, i]).standard_normal(shape))).float()}
        for i in range(2)
    )
    delta = after["p"] - before["p"]
    assert torch.equal(sparsify.importance("p", delta, before, after), delta.abs())


@given(st.integers(2, 400), st.integers(0, 2**31), st.sampled_from([1e-30, 1e-6, 1.0, 1e30]))
def test_kurtosis(count, seed, scale):
    x = (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)
    assert sparsify.kurtosis(torch.from_numpy(x)) == pytest.approx(plain_kurtosis(x.astype(np.float64)), rel=1e-6)


def test_kurtosis_of_a_normal_is_three_and_of_no_spread_too():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(400_000)).float()
    assert sparsify.kurtosis(x) == pytest.approx(3, abs=0.05)
    for flat in (torch.zeros(5), torch.full((7,), 2.5), torch.ones(1)):
        assert sparsify.kurtosis(flat) == 3.0


def test_the_adaptive_ratio_and_its_bounds():
    x = torch.from_numpy(np.random.default_rng(1).random(10_000)).float()
    expected = 0.85 + 0.1 * math.log(plain_kurtosis(x.double().numpy()))
    assert expected < 0.96
    assert sparsify.adaptive_ratio(x, 0.85, 0.99) == pytest.approx(expected, abs=1e-6)
    spike = torch.zeros(10_000)
    spike[0] = 1
    assert sparsify.adaptive_ratio(spike, 0.85, 0.99) == pytest.approx(0.96)
    assert sparsify.adaptive_ratio(spike, 0.95, 0.99) == 0.99
    assert sparsify.adaptive_ratio(torch.tensor([0.0, 1.0]), 0.0, 0.99) == 0.0


@given(st.integers(1, 15), st.integers(1, 15), st.floats(0, 0.999), st.integers(0, 2**31))
def test_prune_is_the_quantile_rule_where_nothing_ties(rows, columns, ratio, seed):
    rng = np.random.default_rng(seed)
    delta = rng.standard_normal((rows, columns)).astype(np.float32)
    scores = rng.permutation(rows * columns).reshape(rows, columns).astype(np.float32) + 1
    got = sparsify.prune(torch.from_numpy(delta), torch.from_numpy(scores), ratio)
    below = math.floor(ratio * (rows * columns - 1))
    assert got.count == max(rows * columns - 1 - below, 1)
    # numpy interpolates in float64; where ratio (n - 1) is an integer only up to rounding, the rule above decides.
    if abs(ratio * (rows * columns - 1) - round(ratio * (rows * columns - 1))) > 1e-9 and got.count > 1:
        np.testing.assert_array_equal(got.dense(), plain_prune(delta, scores, ratio).astype(np.float32))


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 3), st.integers(0, 2**31))
def test_prune_with_ties_keeps_its_count_and_never_a_zero(count, ratio, levels, seed):
    rng = np.random.default_rng(seed)
    delta = torch.from_numpy(rng.integers(-levels, levels + 1, count).astype(np.float32)).reshape(1, -1)
    got = sparsify.prune(delta, delta.abs(), ratio)
    wanted = max(count - 1 - math.floor(ratio * (count - 1)), 1)
    assert got.count == min(wanted, int((delta != 0).sum()))
    assert bool((got.values != 0).all())
    kept = got.dense()
    if got.count:
        assert float(kept[kept != 0].abs().min()) >= float(delta[kept == 0].abs().max()) if (kept == 0).any() else True


def test_prune_refuses_bad_arguments():
    with pytest.raises(ValueError, match=r"ratio 1\.0"):
        sparsify.prune(torch.ones(2, 2), torch.ones(2, 2), 1.0)
    with pytest.raises(ValueError, match="equal shapes"):
        sparsify.prune(torch.ones(2, 2), torch.ones(2, 3), 0.5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        sparsify.prune(torch.ones(2, 2), torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), 0.5)


def test_rescale_restores_the_l1_norm_up_to_its_cap():
    delta = torch.tensor([[4.0, -1.0, 1.0, 2.0]])
    kept = sparsify.prune(delta, delta.abs(), 0.5)
    assert sparsify.rescale(kept, delta, "l1", 10.0).values.tolist() == pytest.approx([4 * 8 / 6, 2 * 8 / 6])
    assert sparsify.rescale(kept, delta, "l1", 1.25).values.tolist() == pytest.approx([5.0, 2.5])
    assert sparsify.rescale(kept, delta, "none", 10.0) is kept
    nothing = sparsify.prune(torch.zeros(2, 2), torch.zeros(2, 2), 0.5)
    assert sparsify.rescale(nothing, torch.zeros(2, 2), "l1", 10.0).count == 0


def sent(pair):
    dB, dA = as_torch(pair)
    return {
        M_B: SparseTensor.from_mask(dB, dB != 0),
        M_A: SparseTensor.from_mask(dA, dA != 0),
    }


# ---- reconstruct and decompose -----------------------------------------------------------------------------------


@given(federations())
def test_the_aggregate_is_exact(federation):
    B, A, deltas, weights = federation
    mean = reconstruct.Mean("m", as_torch((B, A)), [sent(pair) for pair in deltas], list(weights))
    wide = [x.astype(np.float64) for x in (B, A)]
    pairs = [tuple(x.astype(np.float64) for x in pair) for pair in deltas]
    change = mean.careful(change=True)
    np.testing.assert_allclose(
        change.left @ change.right,
        plain_change(*wide, pairs, weights, None),
        atol=1e-12 * max(np.abs(B).max() * np.abs(A).max(), 1e-30) * 20,
    )
    whole = mean.careful(change=False)
    expected = plain_change(*wide, pairs, weights, None) + wide[0] @ wide[1]
    np.testing.assert_allclose(whole.left @ whole.right, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    rank = A.shape[0]
    low = reconstruct.project(whole, rank)
    s = np.linalg.svd(expected, compute_uv=False)
    assert low.left.shape[1] == low.right.shape[0] <= rank
    # The best approximation's error, whichever of several equal ones it is (Eckart and Young).
    error = np.linalg.norm(expected - (low.left @ low.right).numpy())
    assert error == pytest.approx(np.sqrt((s[rank:] ** 2).sum()), rel=1e-6, abs=1e-10 * max(s[0], 1e-300))


def rows(*given):
    return np.array(given, dtype=np.float32)


# What the projection takes away seemed to have converged at the first look.
BY_CHANCE = (
    rows([0.0], [0.0]),
    rows([-0.27413785, -0.89059186]),
    [
        (rows([-0.13640124], [0.0]), rows([-0.14766195, -0.18614247])),
        (rows([0.0], [-0.07052734]), rows([0.04702533, 0.0])),
        (rows([-0.01455028], [0.0339927]), rows([0.0, -0.29355574])),
        (rows([0.0], [-0.00975651]), rows([0.0, 0.0])),
        (rows([0.0], [0.0]), rows([0.0, 0.0])),
    ],
    np.array([0.24478547, 0.06336928, 0.21216581, 0.20112257, 0.27855687]),
)


@pytest.mark.parametrize("method", ["fedsrd", "fedsrd-e"])
@pytest.mark.parametrize("round_number", [1, 2])
@settings(max_examples=60)
@example(federation=BY_CHANCE)
@given(federation=federations())
def test_the_server_step_is_the_dense_float64_reading(method, round_number, federation):
    B, A, deltas, weights = federation
    rank = A.shape[0] if method == "fedsrd" else None
    wide = [x.astype(np.float64) for x in (B, A)]
    pairs = [tuple(x.astype(np.float64) for x in pair) for pair in deltas]
    if rank is not None:
        W = plain_change(*wide, pairs, weights, None) + wide[0] @ wide[1]
        s = np.append(np.linalg.svd(W, compute_uv=False), 0.0)
        if s[rank - 1] - s[rank] < 1e-3 * s[0] and s[rank] > 1e-9 * s[0]:
            return  # two best approximations; the projection's own test covers it
    found, kept = get(method)(get(method).Options(download_sparsity=0.0)).server_update(
        GlobalState(tensors_of({"m": as_torch((B, A))})),
        [
            Contribution(f"c{number}", sent(pair), weight)
            for number, (pair, weight) in enumerate(zip(deltas, weights.tolist(), strict=True))
        ],
        ServerContext(round_number, 0),
    )
    ((name, moved),) = found.items()
    assert name == (M_B if round_number % 2 else M_A)
    assert not kept
    expected = plain_step(*wide, pairs, weights, round_number, rank)
    other = wide[1] if round_number % 2 else wide[0]
    s = np.linalg.svd(other, compute_uv=False)
    if ((s > 1e-7 * s[0]) & (s < 1e-5 * s[0])).any():
        return  # a singular value at the cutoff itself
    close(moved.dense().numpy(), expected, scale=np.abs(wide[0] if round_number % 2 else wide[1]).max())


def test_nothing_of_the_full_size_is_ever_built():
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, tuple | list) else (result,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.numel())
            return result

    out, inn, rank, clients = 512, 480, 4, 3
    rng = np.random.default_rng(0)
    pair = as_torch((rng.standard_normal((out, rank)), rng.standard_normal((rank, inn))))
    deltas = [sent((rng.standard_normal((out, rank)), rng.standard_normal((rank, inn)))) for _ in range(clients)]
    mean = reconstruct.Mean("m", pair, deltas, [1 / 3] * 3)
    # Quick, with a projection that converges or not, and careful, because of a cutoff that the quick way refuses.
    for factor in ("B", "A"):
        for kept, cutoff in ((None, 1e-6), (rank, 1e-6), (None, 1e-3), (rank, 1e-3)):
            with Watch():
                decompose.alternate(mean, factor, kept, cutoff)
    assert out * rank < largest <= 2 * out * (clients + 2) * rank < out * inn / 8


def test_damping_bounds_the_pseudo_inverse_and_cutoff_drops_what_is_small():
    matrix = torch.diag(torch.tensor([1.0, 1e-3, 1e-8]))
    s = 1 / decompose.pseudo_inverse(matrix, cutoff=1e-6).diagonal()
    assert s[:2].tolist() == pytest.approx([1.0, 1e-3])
    assert decompose.pseudo_inverse(matrix, cutoff=1e-2).diagonal().tolist() == pytest.approx([1.0, 0.0, 0.0])
    damped = decompose.pseudo_inverse(matrix, cutoff=0.0, damping=0.1)
    assert damped.diagonal().tolist() == pytest.approx([1 / 1.01, 1e-3 / (1e-6 + 0.01), 1e-8 / 0.01], rel=1e-5)
    assert float(torch.linalg.matrix_norm(damped, 2)) <= 1 / (2 * 0.1)


def test_random_sparsification_is_unbiased():
    delta = torch.tensor([[1.0, -2.0, 3.0]])
    total = torch.zeros(1, 3)
    for i in range(4000):
        total += decompose.sparsify_at_random(delta, M_A, i, 0.2).dense()
    torch.testing.assert_close(total / 4000, delta, rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="expected 0 < keep <= 1"):
        decompose.sparsify_at_random(delta, M_A, 0, 0.0)
    whole = decompose.sparsify_at_random(delta, M_A, 0, 1.0)
    assert whole.positions is None
    assert torch.equal(whole.dense(), delta)

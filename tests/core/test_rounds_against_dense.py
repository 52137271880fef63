"""Whole client and server steps of FedSRD against dense float64, held to 1e-4 of the result's own norm.

`test_against_dense.py` holds the pieces; here the methods themselves run, at extreme magnitudes, with more clients than
the layer has room for, with ranks above a layer's width, and under damping.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fedsrd import methods, rng
from fedsrd.core import decompose, sparsify
from fedsrd.core.local_plan import LocalPlan
from fedsrd.core.lora import LoraPair, tensor_name, tensors_of
from fedsrd.core.tensors import Draw, GlobalState, SparseTensor
from fedsrd.methods import ClientContext, Contribution, ServerContext

M_B, M_A = "m.lora_B.weight", "m.lora_A.weight"
BOTH = pytest.mark.parametrize("name", ["fedsrd", "fedsrd-e"])
ROUNDS = pytest.mark.parametrize("round_number", [1, 2])


def build(name, **options):
    kind = methods.get(name)
    return kind(kind.Options(**options))


def single(array):
    return np.asarray(array, dtype=np.float32)


def pair(B, A):
    return LoraPair(torch.from_numpy(single(B)), torch.from_numpy(single(A)))


def delta_of(dB, dA):
    return {
        M_B: SparseTensor.from_mask(torch.from_numpy(dB), torch.from_numpy(dB != 0)),
        M_A: SparseTensor.from_mask(torch.from_numpy(dA), torch.from_numpy(dA != 0)),
    }


def contributions(deltas, weights):
    return [
        Contribution(f"c{number}", delta, float(weight))
        for number, (delta, weight) in enumerate(zip(deltas, weights, strict=True))
    ]


def plain_pinv(matrix, cutoff=1e-6, damping=0.0):
    """By numpy without damping; with it from the SVD, s / (s^2 + (damping s_max)^2)."""
    if damping == 0.0:
        return np.linalg.pinv(matrix, rcond=cutoff)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    inverse = np.zeros_like(s)
    alive = s > cutoff * s.max()
    inverse[alive] = s[alive] / (s[alive] ** 2 + (damping * s.max()) ** 2)
    return vh.T @ np.diag(inverse) @ u.T


def plain_server(B, A, deltas, weights, round_number, rank, damping=0.0):
    """(the step, the singular values of W) by building every (out, in) matrix."""
    B, A = B.astype(np.float64), A.astype(np.float64)
    W = np.zeros((len(B), A.shape[1]))
    for weight, (dB, dA) in zip(weights, deltas, strict=True):
        W += weight * ((B + dB.astype(np.float64)) @ (A + dA.astype(np.float64)))
    u, s, vh = np.linalg.svd(W, full_matrices=False)
    if rank is not None:
        W = u[:, :rank] @ np.diag(s[:rank]) @ vh[:rank]
    change = W - B @ A
    step = change @ plain_pinv(A, damping=damping) if round_number % 2 else plain_pinv(B, damping=damping) @ change
    return step, s


def server(name, B, A, deltas, weights, round_number, **options):
    method = build(name, **{"download_sparsity": 0.0, **options})
    state, sent = GlobalState(tensors_of({"m": pair(B, A)})), [delta_of(dB, dA) for dB, dA in deltas]
    found, kept = method.server_update(state, contributions(sent, weights), ServerContext(round_number, 0))
    assert list(found) == [M_B if round_number % 2 else M_A]
    assert not kept
    return found[M_B if round_number % 2 else M_A].dense().numpy()


def client(method, before, after):
    """What a client sends in round 1."""
    found, kept = method.client_update(LocalPlan(before, tuple(before)), after, ClientContext(1, 0, "c"))
    assert not kept
    return found


@st.composite
def rounds(draw):
    """B, A, deltas, weights; well conditioned, so that the comparison can be tight. Scales of B and A differ."""
    out, inn = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    rank, clients = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 9]))
    scale_B, scale_A = draw(st.sampled_from([(1, 1), (1e-15, 1e15), (1e15, 1e-15), (1e-30, 1), (1, 1e-30), (1e30, 1)]))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    B, A = random.standard_normal((out, rank)), random.standard_normal((rank, inn))
    for factor in (B, A):
        s = np.linalg.svd(factor, compute_uv=False)
        assume(s[-1] > 1e-2 * s[0])
    deltas = [
        (
            single(scale_B * 0.5 * random.standard_normal(B.shape)),
            single(scale_A * 0.5 * random.standard_normal(A.shape)),
        )
        for _ in range(clients)
    ]
    weights = random.random(clients) ** 3 + 1e-3
    return single(scale_B * B), single(scale_A * A), deltas, weights / weights.sum()


@BOTH
@ROUNDS
@settings(max_examples=50, deadline=None)
@given(drawn=rounds(), damping=st.sampled_from([0.0, 0.0, 1e-3, 0.3]))
def test_the_server_step_to_1e_4_of_its_own_norm(name, round_number, drawn, damping):
    B, A, deltas, weights = drawn
    rank = A.shape[0] if name == "fedsrd" else None
    expected, s = plain_server(B, A, deltas, weights, round_number, rank, damping)
    if rank is not None and rank < len(s):
        assume(s[rank - 1] - s[rank] > 1e-4 * s[0])  # else the best approximation is not unique
    found = server(name, B, A, deltas, weights, round_number, damping=damping)
    assert np.isfinite(found).all()
    # float32 rounds each number of the result to 6e-8 of itself, or to 1.4e-45.
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-44 * found.size


@BOTH
@settings(max_examples=25, deadline=None)
@given(drawn=rounds())
def test_rank_r_loses_nothing_where_the_rank_covers_the_layer(name, drawn):
    B, A, deltas, weights = drawn
    assume(A.shape[0] >= min(len(B), A.shape[1]))
    expected, _ = plain_server(B, A, deltas, weights, 1, None)
    found = server(name, B, A, deltas, weights, 1)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-44 * found.size


@BOTH
@ROUNDS
def test_no_other_step_comes_nearer(name, round_number):
    """The step is the least-squares one: what is left of the change is orthogonal to all that the factor can reach."""
    random = np.random.default_rng(5)
    B, A = single(random.standard_normal((9, 3))), single(random.standard_normal((3, 7)))
    deltas = [(single(random.standard_normal(B.shape)), single(random.standard_normal(A.shape))) for _ in range(3)]
    weights = np.array([0.5, 0.3, 0.2])
    step = server(name, B, A, deltas, weights, round_number).astype(np.float64)
    W = sum(p * (B.astype(np.float64) + dB) @ (A + dA) for p, (dB, dA) in zip(weights, deltas, strict=True))
    if name == "fedsrd":
        u, s, vh = np.linalg.svd(W)
        W = (u[:, :3] * s[:3]) @ vh[:3]
    left = W - B.astype(np.float64) @ A - (step @ A if round_number % 2 else B @ step)
    assert np.linalg.norm(left) > 0.1  # one factor alone cannot follow the whole change
    reach = left @ A.T if round_number % 2 else B.T @ left
    assert np.linalg.norm(reach) < 1e-5 * np.linalg.norm(W)


@BOTH
def test_a_zero_b_in_an_even_round_learns_nothing_and_is_finite(name):
    random = np.random.default_rng(1)
    A = random.standard_normal((2, 5))
    deltas = [(single(random.standard_normal((4, 2))), single(random.standard_normal((2, 5))))]
    assert not server(name, np.zeros((4, 2)), A, deltas, [1.0], 2).any()
    assert server(name, np.zeros((4, 2)), A, deltas, [1.0], 1).any()


@BOTH
@ROUNDS
def test_singular_factors_follow_the_pseudo_inverse(name, round_number):
    random = np.random.default_rng(2)
    B, A = single(random.standard_normal((8, 3))), single(random.standard_normal((3, 8)))
    B[:, 2], A[2] = 2 * B[:, 0], 0.5 * A[1]
    deltas = [(single(random.standard_normal(B.shape)), single(random.standard_normal(A.shape))) for _ in range(2)]
    expected, _ = plain_server(B, A, deltas, [0.5, 0.5], round_number, 3 if name == "fedsrd" else None)
    found = server(name, B, A, deltas, [0.5, 0.5], round_number)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@BOTH
def test_tensors_that_were_not_sent_are_zero(name):
    random = np.random.default_rng(3)
    B, A = single(random.standard_normal((6, 2))), single(random.standard_normal((2, 5)))
    dB = single(random.standard_normal(B.shape))
    method = build(name, download_sparsity=0.0)
    state, sent = GlobalState(tensors_of({"m": pair(B, A)})), delta_of(dB, np.zeros_like(A))
    context = ServerContext(1, 0)
    full, _ = method.server_update(state, contributions([sent, delta_of(0 * B, 0 * A)], [0.5, 0.5]), context)
    del sent[M_A]
    part, _ = method.server_update(state, contributions([sent, {}], [0.5, 0.5]), context)
    assert torch.equal(part[M_B].dense(), full[M_B].dense())
    np.testing.assert_allclose(part[M_B].dense(), 0.5 * dB, rtol=1e-4, atol=1e-5)


# ---- the client ---------------------------------------------------------------------------------------------------


def plain_client(delta, other_norms, alpha, upper, cap):
    """One matrix in float64: importance, kurtosis, ratio, quantile, L1 rescale."""
    delta = delta.astype(np.float64)
    scores = np.abs(delta) * other_norms
    centred = scores - scores.mean()
    ratio = min(alpha + min(0.1 * math.log((centred**4).mean() / (centred**2).mean() ** 2), 0.11), upper)
    kept = np.where(scores > np.quantile(scores, ratio), delta, 0.0)
    factor = 1.0 if cap is None else min(np.abs(delta).sum() / np.abs(kept).sum(), cap)
    return kept * factor


@BOTH
@settings(max_examples=30, deadline=None)
@given(
    out=st.integers(8, 40),
    inn=st.integers(8, 40),
    rank=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([0.0, 0.5, 0.85, 0.9]),
    cap=st.sampled_from([None, 1.5, 10.0]),
    heavy=st.booleans(),
    scale=st.sampled_from([1e-15, 1e-3, 1.0, 1e10]),
)
def test_what_a_client_sends(name, out, inn, rank, seed, alpha, cap, heavy, scale):
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.standard_t(2, shape) if heavy else random.standard_normal(shape)

    # A and B before are small beside what was learnt, so that their difference is exact enough to rank by.
    before = tensors_of({"m": pair(1e-3 * scale * draw(out, rank), 1e-3 * draw(rank, inn))})
    after = tensors_of({"m": pair(scale * draw(out, rank), draw(rank, inn))})
    options = {"rescale": "none"} if cap is None else {"rescale": "l1", "rescale_cap": cap}
    found = client(build(name, alpha=alpha, upper=0.95, **options), before, after)
    norms_B = np.linalg.norm(before[M_A].double().numpy(), axis=1)
    norms_A = np.linalg.norm(after[M_B].double().numpy(), axis=0)[:, None]
    for tensor, norms in ((M_B, norms_B), (M_A, norms_A)):
        delta = (after[tensor] - before[tensor]).numpy()
        expected = plain_client(delta, norms, alpha, 0.95, cap)
        got = found[tensor].dense().numpy()
        # Where the float32 ratio (n - 1) rounds to the other side of a whole number, one element more or less is kept.
        assert abs(np.count_nonzero(got) - np.count_nonzero(expected)) <= 1
        if np.array_equal(got != 0, expected != 0):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        else:
            scores = np.sort((np.abs(delta) * norms).ravel())
            odd = (np.abs(delta) * norms)[(got != 0) != (expected != 0)]
            near = scores[[-np.count_nonzero(expected) - 1, -np.count_nonzero(expected)]]
            assert ((odd >= near[0] * (1 - 1e-5)) & (odd <= near[1] * (1 + 1e-5))).all()


def test_the_client_weighs_with_a_before_and_b_after():
    before = tensors_of({"m": LoraPair(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 10.0]]))})
    after = tensors_of({"m": LoraPair(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 10.0]]))})
    # dB is 3 in column 0 (norm 1) and 1 in column 1 (norm 10): the smaller change matters more.
    # dA is 2 in row 0 (norm sqrt(18)) and 3 in row 1 (norm sqrt(2)): likewise.
    for alpha, kept_B, kept_A in ((0.4, [1, 3], [1, 2]), (0.7, [1], [1])):
        found = client(build("fedsrd", alpha=alpha, upper=0.8, rescale="none"), before, after)
        assert found[M_B].positions.tolist() == kept_B
        assert found[M_A].positions.tolist() == kept_A
        assert found[M_A].values[0] == 2.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 5)])
def test_ties_are_broken_by_position_alone(shape):
    delta = torch.full(shape, 2.0)
    delta[-1, -1] = -2.0
    for ratio in (0.0, 0.5, 0.9):
        kept = sparsify.prune(delta, delta.abs(), ratio)
        assert kept.positions.tolist() == list(
            range(max(delta.numel() - 1 - math.floor(ratio * (delta.numel() - 1)), 1))
        )
        assert torch.equal(kept.values, delta.reshape(-1)[kept.positions])


def test_a_client_that_learnt_nothing_sends_nothing():
    state = tensors_of({"m": pair(np.zeros((3, 2)), np.ones((2, 3)))})
    found = client(build("fedsrd"), state, dict(state))
    assert list(found) == [M_B, M_A]
    assert [sparse.count for sparse in found.values()] == [0, 0]


# ---- the download -------------------------------------------------------------------------------------------------


@BOTH
@ROUNDS
def test_the_download_is_the_dense_step_under_the_seeded_mask(name, round_number):
    random = np.random.default_rng(4)
    B, A = single(random.standard_normal((30, 4))), single(random.standard_normal((4, 20)))
    deltas = [(single(random.standard_normal(B.shape)), single(random.standard_normal(A.shape))) for _ in range(2)]
    full = server(name, B, A, deltas, [0.5, 0.5], round_number)
    method = build(name, download_sparsity=0.75)
    state = GlobalState(tensors_of({"m": pair(B, A), "n": pair(B, A)}))
    sent = [delta_of(*d) | {"n" + key.removeprefix("m"): t for key, t in delta_of(*d).items()} for d in deltas]
    masks = []
    for seed in (1, 2):
        found, _ = method.server_update(state, contributions(sent, [0.5, 0.5]), ServerContext(round_number, seed))
        assert list(found) == [tensor_name(module, "B" if round_number % 2 else "A") for module in "mn"]
        for tensor, sparse in found.items():
            draw = rng.integer(seed, "download mask", round_number)
            mask = rng.keep_mask(full.size, 0.25, draw, "mask", tensor)
            assert sparse.draw == Draw(draw, 0.25)
            assert sparse.positions.tolist() == mask.nonzero()[0].tolist()
            np.testing.assert_allclose(sparse.values, full.ravel()[mask] / 0.25, rtol=1e-6)
            masks.append(tuple(sparse.positions.tolist()))
    assert len(set(masks)) == 4  # each module and each seed has its own


def test_the_download_is_unbiased():
    delta = torch.from_numpy(single(np.random.default_rng(0).standard_normal((8, 8))))
    draws, keep = 3000, 0.2
    total = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(draws):
        total += decompose.sparsify_at_random(delta, M_B, i, keep).dense()
    # One element's mean has standard deviation |x| sqrt((1 - keep) / (keep draws)) = 0.0365 |x|.
    assert float(((total / draws - delta).abs() / delta.abs()).max()) < 4.5 * 0.0365
    assert float((total.sum() / draws - delta.sum()).abs()) < 4 * 0.0365 * float(delta.norm())


@BOTH
@ROUNDS
def test_the_server_step_allocates_nothing_near_the_full_size(name, round_number):
    out, inn, rank, clients, largest = 512, 512, 4, 3, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, tuple | list) else (result,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.numel())
            return result

    random = np.random.default_rng(0)
    B, A = single(random.standard_normal((out, rank))), single(random.standard_normal((rank, inn)))
    deltas = [
        (single(random.standard_normal(B.shape)), single(random.standard_normal(A.shape))) for _ in range(clients)
    ]
    with Watch():
        server(name, B, A, deltas, [1 / 3] * 3, round_number)
    assert out * rank <= largest <= out * (clients + 2) * rank < out * inn / 20

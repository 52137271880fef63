"""Every method's arithmetic against the plain float64 reading of its formulas, on whole matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TABLE, build, moved
from turns import applied, served

from fedsrd.core.lora import FACTORS, LoraPair, pairs_of, split, tensor_name, tensors_of
from fedsrd.core.reconstruct import LowRank, best_pair
from fedsrd.core.sparsify import adaptive_ratio
from fedsrd.core.tensors import Draw, GlobalState, SparseTensor, average, initial_tensors
from fedsrd.methods import ClientContext, Contribution, ServerOptimizer, ServerOptimizerOptions
from fedsrd.methods.flasc import FLASC, largest

B, A = tensor_name("m", "B"), tensor_name("m", "A")
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))


class Case:
    """One module's factors, m clients' changes (some zero, some missing) and weights."""

    def __init__(self, out, inn, rank, clients, seed, scale=1.0):
        random = np.random.default_rng(seed)
        self.rank = rank
        self.B, self.A = random.standard_normal((out, rank)), random.standard_normal((rank, inn))
        if seed % 5 == 0:
            self.B[:] = 0
        pair = LoraPair(torch.from_numpy(self.B).float(), torch.from_numpy(self.A).float())
        self.state = GlobalState(tensors_of({"m": pair}))
        self.B, self.A = (t.double().numpy() for t in pair)
        self.weights = random.dirichlet(np.ones(clients)).tolist()
        self.deltas, self.dB, self.dA = [], [], []
        for client in range(clients):
            pair = [scale * random.standard_normal(t.shape) for t in (self.B, self.A)]
            if (seed + client) % 7 == 0:
                pair = [0 * t for t in pair]
            sent = {
                tensor_name("m", factor): SparseTensor.from_dense(torch.from_numpy(t).float())
                for factor, t in zip(FACTORS, pair, strict=True)
            }
            if (seed + client) % 11 == 0:
                del sent[A]
            self.deltas.append(sent)
            self.dB.append(self.whole(sent, B, pair[0]))
            self.dA.append(self.whole(sent, A, pair[1]))

    @staticmethod
    def whole(sent, name, like):
        return sent[name].dense().double().numpy() if name in sent else 0 * like

    def mean(self, parts):
        return sum(p * part for p, part in zip(self.weights, parts, strict=True))

    def full(self, start_B, start_A):
        return self.mean([(start_B + b) @ (start_A + a) for b, a in zip(self.dB, self.dA, strict=True)])

    def server(self, method, number=1, memory=None, optimizer=None):
        """The broadcast, and what the server keeps."""
        contributions = [
            Contribution(f"c{place}", delta, weight)
            for place, (delta, weight) in enumerate(zip(self.deltas, self.weights, strict=True))
        ]
        return served(method, self.state, contributions, number, memory, optimizer=optimizer)

    def after(self, method, broadcast, number=1):
        """B, A and the change of the base."""
        state = applied(method, self.state, broadcast, number)
        (pair,) = pairs_of(state.tensors).values()
        base = state.base_delta.get("m")
        return pair.B.double().numpy(), pair.A.double().numpy(), 0 if base is None else base.double().numpy()


def close(found, expected, scale=1e-5):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=scale * (1 + np.abs(expected).max(initial=0)))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_fedavg_and_its_server_rate(sizes):
    case = Case(*sizes)
    method = build("fedavg")
    optimizer = ServerOptimizer(ServerOptimizerOptions(name="sgd", learning_rate=1.5))
    new_B, new_A, _ = case.after(method, case.server(method, optimizer=optimizer)[0])
    close(new_B, case.B + 1.5 * case.mean(case.dB))
    close(new_A, case.A + 1.5 * case.mean(case.dA))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_flexlora_is_the_best_approximation_of_the_mean_product(sizes):
    case = Case(*sizes)
    method = build("flexlora")
    new_B, new_A, _ = case.after(method, case.server(method)[0])
    whole = case.full(case.B, case.A)
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    rank = min(case.rank, len(s))
    close(new_B @ new_A, u[:, :rank] * s[:rank] @ vh[:rank], 1e-4)
    # Singular values lie in B, falling; the rows of A have norm one.
    norms = np.linalg.norm(new_B, axis=0)
    assert (np.diff(norms) <= 1e-4 * (1 + norms[0])).all()
    close(np.linalg.norm(new_A, axis=1)[:rank], np.ones(rank), 1e-3)


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_flora_puts_the_mean_product_into_the_base(sizes):
    case = Case(*sizes)
    case.B[:] = 0
    case.state.tensors[B].zero_()
    method = build("flora")
    broadcast, _ = case.server(method)
    assert broadcast[B].shape == (len(case.B), case.rank * len(case.weights))
    new_B, new_A, base = case.after(method, broadcast)
    close(base, case.full(case.B, case.A), 1e-4)
    assert not new_B.any()
    assert not np.allclose(new_A, case.A)


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_fedex_lora_is_exact(sizes):
    case = Case(*sizes)
    method = build("fedex-lora")
    new_B, new_A, base = case.after(method, case.server(method)[0])
    close(new_B, case.B + case.mean(case.dB))
    close(new_A, case.A + case.mean(case.dA))
    close(base + new_B @ new_A, case.full(case.B, case.A), 1e-4)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([0.0, 0.5, 1.0]))
def test_fedicu_style_weighs_divergence(sizes, divergence):
    case = Case(*sizes)
    method = build("fedicu-style", keep=1.0, divergence=divergence)
    found, _ = case.server(method)
    for name, parts in ((B, case.dB), (A, case.dA)):
        consensus = case.mean(parts)
        size = np.linalg.norm(consensus)
        apart = [part - consensus for part in parts]
        ratios = [np.linalg.norm(d) / max(np.linalg.norm(d) + size, 1e-300) for d in apart]
        shares = [p * (1 + ratio) for p, ratio in zip(case.weights, ratios, strict=True)]
        total = sum(shares)
        expected = consensus + divergence * sum(q / total * d for q, d in zip(shares, apart, strict=True))
        if name in found:
            close(found[name].dense().double().numpy(), expected, 1e-4)
        else:
            assert not expected.any()


@settings(max_examples=40, deadline=None)
@given(SIZES, st.booleans())
def test_flasc_is_adam_on_theta_and_its_largest_elements(sizes, by_default):
    case = Case(*sizes, scale=0.01)
    method = build("flasc", down=0.3)
    chosen = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    given = None if by_default else ServerOptimizer(ServerOptimizerOptions(name="adam", bias_correction=True, **chosen))
    rate, epsilon = (2e-3, 1e-3) if by_default else (0.01, 1e-8)
    assert FLASC.default_optimizer.model_dump(include={"name", "learning_rate", "epsilon", "bias_correction"}) == {
        "name": "adam",
        "learning_rate": 2e-3,
        "epsilon": 1e-3,
        "bias_correction": True,
    }
    theta = np.concatenate([case.B.ravel(), case.A.ravel()])
    m, v = 0 * theta, 0 * theta
    memory = {}
    for number in (1, 2, 3):
        broadcast, memory = case.server(method, number, memory, given)
        gradient = np.concatenate([case.mean(case.dB).ravel(), case.mean(case.dA).ravel()])
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta + rate * (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + epsilon)
        model = method.model(case.state, memory)
        found = np.concatenate([model[name].double().numpy().ravel() for name in (B, A)])
        np.testing.assert_allclose(found, theta, rtol=1e-3, atol=1e-5)
        new_B, new_A, _ = case.after(method, broadcast, number)
        sent = np.concatenate([new_B.ravel(), new_A.ravel()])
        count = max(round(0.3 * len(theta)), 1)
        assert np.count_nonzero(sent) <= count
        kept = sent != 0
        np.testing.assert_array_equal(sent[kept], found[kept])
        if (~kept).any() and kept.any():
            assert np.abs(found[kept]).min() >= np.abs(found[~kept]).max() - 1e-7


@given(st.integers(1, 30), st.integers(0, 2**32), st.floats(0.01, 1.0), st.booleans())
def test_the_largest_of_all_tensors_together(count, seed, share, ties):
    random = np.random.default_rng(seed)
    values = random.integers(-3, 4, (2, count)) if ties else random.standard_normal((2, count))
    tensors = {name: torch.from_numpy(v).float().reshape(1, -1) for name, v in zip((B, A), values, strict=True)}
    found = largest(tensors, share)
    kept = np.concatenate([found[name].dense().numpy().ravel() for name in tensors])
    whole = np.concatenate([t.numpy().ravel() for t in tensors.values()])
    wanted = min(max(round(share * len(whole)), 1), np.count_nonzero(whole))
    assert np.count_nonzero(kept) == wanted
    assert np.sort(np.abs(whole))[::-1][:wanted].sum() == pytest.approx(np.abs(kept).sum(), rel=1e-6)


@given(SIZES, st.data())
def test_an_average_has_what_anybody_sent(sizes, data):
    case = Case(*sizes)
    thin = []
    for delta in case.deltas:
        sent = {}
        for name, whole in delta.items():
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=whole.elements, max_size=whole.elements)))
            sent[name] = SparseTensor.from_mask(whole.dense(), torch.from_numpy(mask.reshape(whole.shape)))
        thin.append(sent)
    found = average(case.state.tensors, thin, case.weights)
    for name in {name for delta in thin for name in delta}:
        dense = [d[name].dense().double().numpy() if name in d else np.zeros(found[name].shape) for d in thin]
        close(found[name].dense().double().numpy(), case.mean(dense))
        sent = {int(p) for d in thin if name in d for p in d[name].positions}
        assert set(found[name].positions.tolist()) == sent


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32))
def test_the_best_pair_has_the_rank_that_was_asked_for_and_one_sign(out, inn, rank, seed):
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((out, 5)), random.standard_normal((5, inn))
    found = best_pair(LowRank(torch.from_numpy(left), torch.from_numpy(right)), rank)
    assert (found.B.shape, found.A.shape) == ((out, rank), (rank, inn))
    u, s, vh = np.linalg.svd(left @ right, full_matrices=False)
    close(found.B.double().numpy() @ found.A.double().numpy(), u[:, :rank] * s[:rank] @ vh[:rank], 1e-4)
    turned = best_pair(LowRank(torch.from_numpy(-left), torch.from_numpy(-right)), rank)
    close(turned.A.double().numpy(), found.A.double().numpy(), 1e-4)
    alive = found.A.abs().sum(1) > 0
    assert bool((found.A.gather(1, found.A.abs().argmax(1, keepdim=True)).squeeze(1)[alive] > 0).all())


# FedSRD's switches.


def sparsified(after, start, **options):
    method = build("fedsrd", **options)
    context = ClientContext(3, 5, "c")
    return method.client_update(method.local_plan(GlobalState(start), context), after, context)[0]


@pytest.mark.parametrize("ratio", ["fixed", "adaptive"])
@pytest.mark.parametrize("kind", ["importance", "magnitude", "random"])
@pytest.mark.parametrize("rescale", ["l1", "none"])
def test_the_sparsifiers_switches(kind, ratio, rescale):
    start = initial_tensors(TABLE, 0)
    after = moved(start, tuple(start), np.random.default_rng(1))
    sent = sparsified(after, start, sparsifier=kind, ratio=ratio, alpha=0.7, rescale=rescale)
    assert list(sent) == list(start)
    for name, sparse in sent.items():
        d = (after[name] - start[name]).double().numpy()
        module, factor = split(name)
        if factor == "B":
            norms = np.linalg.norm(start[tensor_name(module, "A")].double().numpy(), axis=1)
        else:
            norms = np.linalg.norm(after[tensor_name(module, "B")].double().numpy(), axis=0)[:, None]
        importance = np.abs(d) * norms
        scores = np.abs(d) if kind == "magnitude" else importance
        rho = 0.7 if ratio == "fixed" else adaptive_ratio(torch.from_numpy(scores).float(), 0.7, 0.99)
        found = sparse.dense().double().numpy()
        kept = found != 0
        if kind == "random":
            assert sparse.draw is not None
            assert kept.mean() == pytest.approx(1 - rho, abs=0.25)
        else:
            wanted = d.size - 1 - int(np.floor(rho * (d.size - 1)))
            assert kept.sum() == wanted
            assert scores[kept].min() >= scores[~kept].max() * (1 - 1e-6)
        factor = min(np.abs(d).sum() / np.abs(d[kept]).sum(), 10.0) if rescale == "l1" else 1.0
        np.testing.assert_allclose(found[kept], factor * d[kept], rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_without_decomposition_both_factors_of_the_svd_are_sent(sizes):
    case = Case(*sizes)
    method = build("fedsrd", server="svd", download="none")
    new_B, new_A, _ = case.after(method, case.server(method)[0])
    u, s, vh = np.linalg.svd(case.full(case.B, case.A), full_matrices=False)
    rank = min(case.rank, len(s))
    close(new_B @ new_A, u[:, :rank] * s[:rank] @ vh[:rank], 1e-4)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 2))
def test_without_reconstruction_factors_are_averaged(sizes, number):
    case = Case(*sizes)
    method = build("fedsrd", server="average", download="none")
    new_B, new_A, _ = case.after(method, case.server(method, number)[0], number)
    close(new_B, case.B + case.mean(case.dB))
    close(new_A, case.A + case.mean(case.dA))


@pytest.mark.parametrize("number", [1, 2])
def test_the_projection_can_be_switched_in_both_variants(number):
    case = Case(8, 7, 2, 3, 1)
    for one, other in (("fedsrd", "fedsrd-e"), ("fedsrd-e", "fedsrd")):
        switched = build(one, project=one == "fedsrd-e", download="none")
        plain = build(other, download="none")
        for name, sparse in case.server(switched, number)[0].items():
            assert torch.equal(sparse.dense(), case.server(plain, number)[0][name].dense())


def test_the_downlinks_switches():
    case = Case(40, 30, 4, 3, 1)

    def sent(**options):
        return case.server(build("fedsrd", **options))[0][B]

    whole = sent(download="none").dense()
    same = sent(download="importance", download_sparsity=0.0).dense()
    assert torch.equal(whole, same)
    drawn = sent(download="random", download_sparsity=0.5)
    assert isinstance(drawn.draw, Draw)
    kept = drawn.dense() != 0
    torch.testing.assert_close(drawn.dense()[kept], 2 * whole[kept])
    chosen = sent(download="importance", download_sparsity=0.75, rescale="none")
    scores = whole.double().numpy() * np.linalg.norm(case.A, axis=1)
    kept = chosen.dense().numpy() != 0
    assert kept.sum() == 160 - 1 - int(0.75 * 159)
    assert np.abs(scores[kept]).min() >= np.abs(scores[~kept]).max()
    torch.testing.assert_close(chosen.dense()[torch.from_numpy(kept)], whole[torch.from_numpy(kept)])

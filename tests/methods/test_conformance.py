"""What every method must do; a new one joins by being registered."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedsrd import methods
from fedsrd.core.factors import LoraPair, ModuleShape, ShapeTable, Slot, digest, initial_factors
from fedsrd.errors import RecipeError
from fedsrd.methods import ClientStep, ServerStep
from fedsrd.wire.payload import Kind, decode_delta, encode_delta, is_finite

TABLE = ShapeTable((ModuleShape("l0.q", 24, 16, 4), ModuleShape("l0.v", 6, 16, 4)))
EVERY = pytest.mark.parametrize("name", methods.names())


def build(name, **options):
    kind = methods.get(name)
    return kind(kind.Options(**options))


def trained(start, seed, method, round_number=1):
    rng = np.random.default_rng(seed)
    moved = {}
    for name, pair in start.items():
        noise = [torch.from_numpy(rng.standard_normal(t.shape) * 0.05).float() for t in pair]
        learns = [factor in method.trained(round_number) for factor in "BA"]
        moved[name] = LoraPair(*(t + n * moves for t, n, moves in zip(pair, noise, learns, strict=True)))
    return moved


def one_round(method, start, seeds, round_number, seed=0):
    deltas = [
        method.client_update(start, trained(start, s, method, round_number), ClientStep(round_number, f"c{i}", seed))
        for i, s in enumerate(seeds)
    ]
    broadcast = method.server_update(start, deltas, [1 / len(seeds)] * len(seeds), ServerStep(round_number, seed))
    return method.apply(start, broadcast), deltas, broadcast


@EVERY
def test_updates_and_broadcasts_survive_the_wire(name):
    method, state = build(name), initial_factors(TABLE, 0)
    for round_number in (1, 2, 3):
        after, deltas, broadcast = one_round(method, state, [1, 2], round_number)
        read = [decode_delta(encode_delta(d, TABLE, Kind.UPLINK, round_number, 0), TABLE)[1] for d in deltas]
        again = method.server_update(state, read, [0.5, 0.5], ServerStep(round_number, 0))
        sent = decode_delta(encode_delta(again, TABLE, Kind.DOWNLINK, round_number, 0), TABLE)[1]
        assert digest(method.apply(state, sent)) == digest(method.apply(state, broadcast)) == digest(after)
        state = after


@EVERY
def test_a_round_follows_from_its_arguments_alone(name):
    start = initial_factors(TABLE, 0)
    first, _, _ = one_round(build(name), start, [1, 2], 1)
    torch.manual_seed(99)
    second, _, _ = one_round(build(name), start, [1, 2], 1)
    assert digest(first) == digest(second)


@EVERY
def test_equal_clients_count_as_one(name):
    method, start = build(name), one_round(build(name), initial_factors(TABLE, 0), [7], 1)[0]
    for round_number in (2, 3):
        alone, _, _ = one_round(method, start, [1], round_number)
        many, _, _ = one_round(method, start, [1, 1, 1], round_number)
        for module in alone:
            for one, other in zip(alone[module], many[module], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize("round_number", [1, 2])
def test_clients_that_learnt_nothing_change_nothing(name, round_number):
    """Also in an even round with B still zero, whose pseudo-inverse is zero."""
    method, start = build(name), initial_factors(TABLE, 0)
    deltas = [method.client_update(start, dict(start), ClientStep(round_number, "c", 0))]
    broadcast = method.server_update(start, deltas, [1.0], ServerStep(round_number, 0))
    assert is_finite(broadcast)
    after = method.apply(start, broadcast)
    for module in start:
        for one, other in zip(start[module], after[module], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_one_client_of_fedavg_is_local_training():
    method, start = build("fedavg"), initial_factors(TABLE, 0)
    after, _, _ = one_round(method, start, [3], 1)
    expected = trained(start, 3, method)
    for module in start:
        torch.testing.assert_close(after[module].B, expected[module].B)
        torch.testing.assert_close(after[module].A, expected[module].A)


def test_one_client_of_fedsrd_without_compression_moves_the_product_as_far_as_one_factor_can():
    method = build("fedsrd", alpha=0.0, upper=0.0, rescale="none", download_sparsity=0.0)
    start = initial_factors(TABLE, 0)
    after, deltas, _ = one_round(method, start, [3], 1)
    local = trained(start, 3, method)
    for module in start:
        # alpha = 0 still drops the single least important element of each matrix.
        assert deltas[0][Slot(module, "B")].count >= local[module].B.numel() - 1
        target = (local[module].B @ local[module].A).double()
        step = target @ torch.linalg.pinv(start[module].A.double())
        torch.testing.assert_close(after[module].B.double(), step, rtol=0.05, atol=0.02)


def test_fedsrd_sends_a_tenth_and_b_and_a_in_turn():
    table = ShapeTable((ModuleShape("m", 600, 500, 16),))
    method, state = build("fedsrd"), initial_factors(table, 0)
    for round_number in (1, 2, 3, 4):
        state, deltas, broadcast = one_round(method, state, [1, 2], round_number)
        assert [slot.factor for slot in broadcast] == ["B" if round_number % 2 else "A"]
        assert len(encode_delta(deltas[0], table, Kind.UPLINK, 1, 0)) < 0.1 * 4 * table.elements
        assert next(iter(broadcast.values())).count / (8000 + 1600 * (round_number % 2)) == pytest.approx(0.2, abs=0.02)


def test_an_unknown_method_names_the_nearest_and_all():
    with pytest.raises(RecipeError, match=r"Did you mean 'fedsrd-e'\? Known: fedavg, fedsrd, fedsrd-e"):
        methods.get("fedsrde")


@pytest.mark.parametrize(
    "options",
    [{"alpha": 1.0}, {"alpha": -0.1}, {"download_sparsity": 1.0}, {"rescale": "l2"}, {"rescale_cap": 0.5}, {"x": 1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        build("fedsrd", **options)

"""Factors, shape tables, digests."""

import torch

from fedsrd import rng
from fedsrd.core.factors import LoraPair, ModuleShape, ShapeTable, Slot, SparseTensor, add, digest, initial_factors

TABLE = ShapeTable((ModuleShape("a", 30, 400, 8), ModuleShape("b", 20, 50, 8)))


def test_adding_leaves_the_input_and_shares_what_does_not_move():
    start = initial_factors(TABLE, 0)
    kept = digest(start)
    delta = {Slot("a", "B"): SparseTensor((30, 8), torch.tensor([0, 239]), torch.tensor([1.5, -2.0]))}
    after = add(start, delta)
    assert digest(start) == kept
    assert after["a"].A is start["a"].A
    assert after["b"] is start["b"]
    assert after["a"].B[0, 0] == 1.5
    assert after["a"].B[29, 7] == -2.0
    assert int((after["a"].B != 0).sum()) == 2


def test_a_digest_sees_one_bit_a_name_and_an_order():
    one = initial_factors(TABLE, 0)
    assert digest(one) == digest(initial_factors(TABLE, 0)) != digest(initial_factors(TABLE, 1))
    flipped = {name: LoraPair(pair.B.clone(), pair.A.clone()) for name, pair in one.items()}
    flipped["b"].B[0, 0] = -0.0
    assert digest(flipped) != digest(one)
    assert digest({"x": one["a"], "b": one["b"]}) != digest(one)
    assert digest({"b": one["b"], "a": one["a"]}) != digest(one)


def test_the_table_digest_sees_every_change():
    base = TABLE.modules
    others = [
        base[::-1],
        base[:1],
        (base[0]._replace(name="c"), base[1]),
        (base[0]._replace(rank=4), base[1]),
        (base[0]._replace(in_features=30, out_features=400), base[1]),
    ]
    assert len({ShapeTable(modules).digest for modules in [base, *others]}) == 6
    assert TABLE.elements == sum(rows * columns for rows, columns in TABLE.shapes.values())


def test_the_common_start_is_pefts():
    A = initial_factors(TABLE, 0)["a"].A
    bound = rng.kaiming_bound(400)
    assert float(A.abs().max()) <= bound
    assert float(A.std()) > 0.95 * bound / 3**0.5
    reference = torch.nn.Linear(400, 8).weight.detach()  # torch's default is the Kaiming uniform with a = sqrt(5)
    assert abs(float(A.std()) - float(reference.std())) < 0.05 * bound

"""Tensors, their tables, digests."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsrd import rng
from fedsrd.core.lora import LoraModule, modules_of, pairs_of, split, table_of, tensor_name, tensors_of
from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable, add, average, digest, initial_tensors

MODULES = (LoraModule("a", 30, 400, 8), LoraModule("b", 20, 50, 8))
TABLE = table_of(MODULES)
A_B, A_A, B_B, B_A = TABLE.shapes
PLAIN = (TensorSpec("scale", (7,)), TensorSpec("gate", ()), TensorSpec("kernel", (2, 3, 5)))


def test_adding_leaves_the_input_and_shares_what_does_not_move():
    start = initial_tensors(TABLE, 0)
    kept = digest(start)
    delta = {A_B: SparseTensor((30, 8), torch.tensor([0, 239]), torch.tensor([1.5, -2.0]))}
    after = add(start, delta)
    assert digest(start) == kept
    assert list(after) == list(start)
    for name in (A_A, B_B, B_A):
        assert after[name] is start[name]
    assert after[A_B][0, 0] == 1.5
    assert after[A_B][29, 7] == -2.0
    assert int((after[A_B] != 0).sum()) == 2


def test_adding_to_tensors_of_any_number_of_dimensions():
    start = initial_tensors(TensorTable(PLAIN), 0)
    assert {name: tuple(tensor.shape) for name, tensor in start.items()} == {spec.name: spec.shape for spec in PLAIN}
    assert not any(tensor.any() for tensor in start.values())
    delta = {
        "scale": SparseTensor((7,), torch.tensor([6]), torch.tensor([0.5])),
        "gate": SparseTensor((), torch.tensor([0]), torch.tensor([3.0])),
        "kernel": SparseTensor((2, 3, 5), torch.tensor([0, 29]), torch.tensor([1.5, -2.0])),
    }
    after = add(start, delta)
    assert after["scale"].tolist() == [0, 0, 0, 0, 0, 0, 0.5]
    assert (after["gate"].shape, after["gate"].item()) == (torch.Size([]), 3.0)
    assert (after["kernel"][0, 0, 0], after["kernel"][1, 2, 4]) == (1.5, -2.0)
    assert int((after["kernel"] != 0).sum()) == 2
    whole = add(after, {name: SparseTensor.from_dense(-tensor) for name, tensor in after.items()})
    assert not any(tensor.any() for tensor in whole.values())


@given(
    st.integers(1, 4),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    st.sampled_from([Draw(3, 0.3), Draw(3, 1 / 3, 2 / 3), Draw(2**64 - 1, 1.0)]),
    st.integers(0, 2**31),
)
def test_the_mean_of_what_all_drew_alike_stays_drawn(kinds, weights, draw, seed):
    """With every drawn element, zeros too, and the sum that dense float64 has."""
    generator = torch.Generator().manual_seed(seed)
    weights = [weight / sum(weights) for weight in weights]
    deltas = []
    for _ in weights:
        whole = {spec.name: torch.randn(spec.shape, generator=generator) for spec in PLAIN[:kinds]}
        whole["scale"][:3] = 0.0
        deltas.append({name: SparseTensor.from_draw(tensor, name, draw) for name, tensor in whole.items()})
    mean = average([spec.name for spec in PLAIN], deltas, weights)
    for name, sparse in mean.items():
        assert sparse.draw == draw
        assert torch.equal(sparse.positions, draw.positions(name, sparse.elements))
        dense = sum(w * delta[name].dense().double() for w, delta in zip(weights, deltas, strict=True))
        assert torch.allclose(sparse.dense().double(), torch.as_tensor(dense), atol=1e-6)
        again = sparse.scaled(0.5)
        assert (again.draw, again.positions) == (draw, sparse.positions)


def test_the_mean_of_what_was_drawn_otherwise_is_no_draw():
    """Another range, no draw, or a draw whose elements are not all there: the union of what was sent."""
    ones = torch.ones(40)
    drawn = SparseTensor.from_draw(ones, "p", Draw(1, 0.5))
    others = [
        SparseTensor.from_draw(ones, "p", Draw(1, 0.5, 0.5)),
        SparseTensor.from_draw(ones, "p", Draw(2, 0.5)),
        SparseTensor(drawn.shape, drawn.positions, drawn.values),
        SparseTensor(drawn.shape, drawn.positions[1:], drawn.values[1:], drawn.draw),
    ]
    for other in others:
        for pair in ((drawn, other), (other, drawn)):
            mean = average(["p"], [{"p": sparse} for sparse in pair], [0.5, 0.5])["p"]
            assert mean.draw is None
            union = sorted({*drawn.positions.tolist(), *other.positions.tolist()})
            assert mean.positions.tolist() == union
            assert torch.equal(mean.dense(), (drawn.dense() + other.dense()) / 2)
    whole = average(["p"], [{"p": drawn}, {"p": SparseTensor.from_dense(ones)}], [0.5, 0.5])["p"]
    assert whole.positions is None
    assert average(["p"], [{"p": drawn}, {}], [0.5, 0.5])["p"].draw == drawn.draw


def test_a_digest_sees_one_bit_a_name_and_an_order():
    one = initial_tensors(TABLE, 0)
    assert digest(one) == digest(initial_tensors(TABLE, 0)) != digest(initial_tensors(TABLE, 1))
    flipped = {name: tensor.clone() for name, tensor in one.items()}
    flipped[B_B][0, 0] = -0.0
    assert digest(flipped) != digest(one)
    renamed = {tensor_name("x", "B"): A_B, tensor_name("x", "A"): A_A, B_B: B_B, B_A: B_A}
    assert digest({new: one[old] for new, old in renamed.items()}) != digest(one)
    assert digest({name: one[name] for name in (B_B, B_A, A_B, A_A)}) != digest(one)
    assert digest({name: one[name] for name in (A_A, A_B, B_B, B_A)}) != digest(one)


def test_the_table_digest_sees_every_change():
    base = MODULES
    others = [
        base[::-1],
        base[:1],
        (base[0]._replace(name="c"), base[1]),
        (base[0]._replace(rank=4), base[1]),
        (base[0]._replace(in_features=30, out_features=400), base[1]),
    ]
    assert len({table_of(modules).digest for modules in [base, *others]}) == 6
    assert TABLE.elements == sum(rows * columns for rows, columns in TABLE.shapes.values())


def test_the_table_digest_sees_roles_and_every_dimension():
    shapes = [(), (1,), (6,), (6, 1), (1, 6), (2, 3), (3, 2), (1, 2, 3), (2, 1, 3), (2, 3, 1), (0,), (0, 6)]
    specs = [TensorSpec("m", shape) for shape in shapes]
    specs += [TensorSpec("m", (2, 3), "lora_B"), TensorSpec("m", (2, 3), "lora_A"), TensorSpec("n", (2, 3))]
    assert len({TensorTable((spec,)).digest for spec in specs}) == len(specs)
    assert len({TensorTable(order).digest for order in (PLAIN, PLAIN[::-1], PLAIN[:2], PLAIN[1:])}) == 4
    assert TensorTable(PLAIN).elements == 7 + 1 + 30


def test_a_table_of_tensors_says_roles_by_name():
    tensors = initial_tensors(TABLE, 0) | initial_tensors(TensorTable(PLAIN), 0)
    assert TensorTable.of(tensors) == TensorTable((*TABLE.specs, *PLAIN))
    assert [spec.role for spec in TensorTable.of(tensors).specs] == ["lora_B", "lora_A"] * 2 + ["plain"] * 3


def test_the_common_start_is_pefts():
    A = initial_tensors(TABLE, 0)[A_A]
    bound = rng.kaiming_bound(400)
    assert float(A.abs().max()) <= bound
    assert float(A.std()) > 0.95 * bound / 3**0.5
    reference = torch.nn.Linear(400, 8).weight.detach()  # torch's default is the Kaiming uniform with a = sqrt(5)
    assert abs(float(A.std()) - float(reference.std())) < 0.05 * bound


def test_the_lora_view_of_a_table_and_of_tensors_and_back():
    mixed = TensorTable((PLAIN[0], *TABLE.specs[2:], PLAIN[1], *TABLE.specs[:2], PLAIN[2]))
    assert modules_of(TABLE) == MODULES
    assert modules_of(mixed) == MODULES[::-1]
    assert TensorTable.of(initial_tensors(TABLE, 0)) == TABLE
    tensors = initial_tensors(mixed, 0)
    pairs = pairs_of(tensors)
    assert list(pairs) == ["b", "a"]
    assert pairs["a"].B is tensors[A_B]
    assert tensors_of(pairs) == {name: tensors[name] for name in (B_B, B_A, A_B, A_A)}
    assert [split(name) for name in mixed.shapes][:3] == [("scale", None), ("b", "B"), ("b", "A")]


@pytest.mark.parametrize(
    "specs",
    [
        TABLE.specs[:1],
        TABLE.specs[1:],
        (TABLE.specs[0], TABLE.specs[1]._replace(shape=(4, 400))),
        (TABLE.specs[0], TABLE.specs[1]._replace(shape=(8, 400, 1))),
        (TABLE.specs[0]._replace(shape=(30,)), TABLE.specs[1]),
    ],
)
def test_factors_that_are_no_pair_are_refused(specs):
    with pytest.raises(ValueError, match=r"its partner has shape .*; expected factors of one rank"):
        modules_of(TensorTable(tuple(specs)))

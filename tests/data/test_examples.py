"""Splits: disjoint, by group, the same everywhere."""

from hypothesis import given
from hypothesis import strategies as st

from fedsrd.data.examples import TELLING, Example, normalised, split_examples

TEXT = st.sampled_from(["a", "b", "A ", "what is it", "a longer answer than twenty characters", "42", "43"])
EXAMPLES = st.lists(st.builds(Example, TEXT, TEXT, st.sampled_from(["", "g1", "g2", "g3"])), max_size=40)


@given(EXAMPLES, st.floats(0.05, 0.95), st.integers(0, 5), st.randoms(use_true_random=False))
def test_parts_are_disjoint_and_do_not_depend_on_the_order(examples, fraction, seed, random):
    train, test = split_examples(examples, fraction, seed)
    shuffled = list(examples)
    random.shuffle(shuffled)
    again = split_examples(shuffled, fraction, seed)
    assert [[(e.instruction, e.response) for e in part] for part in again] == [
        [(e.instruction, e.response) for e in part] for part in (train, test)
    ]
    assert not {e.group for e in train if e.group} & {e.group for e in test if e.group}
    assert not {normalised(e.instruction) for e in train} & {normalised(e.instruction) for e in test}
    long = {normalised(e.response) for e in train if len(e.response) > TELLING}
    assert not long & {normalised(e.response) for e in test}
    keys = [normalised(f"{e.instruction}\n{e.response}") for e in (*train, *test)]
    assert len(keys) == len(set(keys))


def test_the_share_is_about_right_and_the_seed_matters():
    examples = [Example(f"question {i}", str(i)) for i in range(2000)]
    train, test = split_examples(examples, 0.1, 0)
    assert len(train) + len(test) == 2000
    assert 150 < len(test) < 250
    assert split_examples(examples, 0.1, 1)[1] != test
    assert split_examples(examples, 1.0, 0)[0] == []

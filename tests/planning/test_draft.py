"""A first recipe: its columns, its settings, and a text that says exactly what it means."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd import recipe as recipes
from fedsrd.planning import draft as drafts
from fedsrd.planning import memory
from fedsrd.planning.architecture import architecture
from fedsrd.planning.draft import Draft, Fit, Source

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
# A recipe has neither NUL nor half a surrogate pair (fedsrd.toml).
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
SOURCES = st.builds(
    Source,
    NAMES,
    TEXTS,
    st.one_of(st.just({}), st.fixed_dictionaries({"instruction": TEXTS, "response": TEXTS})),
)
FITS = st.builds(Fit, st.integers(1, 64), st.integers(1, 64), st.just(False), st.sampled_from(["none", "nf4"]))
DRAFTS = st.builds(
    Draft,
    NAMES,
    TEXTS,
    st.lists(SOURCES, min_size=1, max_size=3, unique_by=lambda one: one.name),
    st.lists(SOURCES, max_size=2, unique_by=lambda one: one.name),
    st.sampled_from(["fedsrd", "fedavg", "flora"]),
    st.integers(1, 1000),
    st.integers(1, 512),
    st.sampled_from(["auto", "cpu"]),
    st.sampled_from(["bfloat16", "float32"]),
    FITS,
    st.integers(1, 100),
    st.floats(1e-6, 1.0),
    st.sampled_from(drafts.LENGTHS),
    st.sampled_from(["chat", "alpaca"]),
    st.just(False),
    st.none() | st.floats(0.01, 100.0),
    st.floats(1e-12, 1e-3),
)


@given(DRAFTS)
def test_the_text_says_exactly_what_is_meant(draft):
    recipe = recipes.parse(tomllib.loads(drafts.text(draft)))
    assert (recipe.name, recipe.rounds, recipe.model.id) == (draft.name, draft.rounds, draft.model)
    assert (recipe.model.device, recipe.model.dtype) == (draft.device, draft.dtype)
    assert recipe.model.quantization == draft.fit.quantization
    assert (recipe.lora.rank, recipe.lora.alpha) == (draft.rank, 2 * draft.rank)
    training = recipe.training
    assert (training.batch_size, training.accumulation) == (draft.fit.batch, draft.fit.accumulation)
    assert (training.steps, training.learning_rate) == (draft.steps, draft.rate)
    assert (training.max_length, training.prompt, training.packing) == (draft.max_length, draft.prompt, draft.packing)
    assert recipe.method["name"] == draft.method
    asked = recipe.privacy.examples
    assert (None if asked is None else (asked.epsilon, asked.delta)) == (
        None if draft.epsilon is None else (draft.epsilon, draft.delta)
    )
    for meant, got in ((draft.clients, recipe.clients), (draft.held_out, recipe.evaluation.sets)):
        assert [(one.name, one.source, dict(one.columns)) for one in meant] == [
            (one.name, one.data.source, one.data.columns) for one in got
        ]


def test_packing_and_checkpointing_are_written_where_they_are_meant():
    draft = Draft("a", "m", [Source("x", "x.jsonl")], packing=True, fit=Fit(2, 8, True, "nf4"))
    recipe = recipes.parse(drafts.tree(draft))
    assert recipe.training.packing
    assert recipe.model.gradient_checkpointing


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "response": "b"}, {}),
        ({"instruction": "a", "input": "c", "output": "b"}, {"response": "output"}),
        ({"question": "a", "answer": "b", "id": 3}, {"instruction": "question", "response": "answer"}),
        ({"Prompt": "a", "Completion": "b"}, {"instruction": "Prompt", "response": "Completion"}),
        ({"input": "a", "output": "b"}, {"instruction": "input", "response": "output"}),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages": "messages"},
        ),
        ({"messages": "a text"}, None),
        ({"text": "a"}, None),
        ({"question": "a", "answer": 3}, None),
        ({}, None),
    ],
)
def test_columns_are_known_by_their_names_or_not_at_all(row, expected):
    assert drafts.columns_for(row) == expected


@given(st.integers(1, 10**9))
def test_delta_is_at_most_a_tenth_of_one_example(count):
    delta = drafts.delta_for(count)
    assert delta * count <= 0.1 * (1 + 1e-9)
    assert math.log10(delta) == pytest.approx(round(math.log10(delta)))


def test_lengths_are_the_first_that_fits():
    assert [drafts.length_for(high) for high in (1, 64, 65, 513, 10**6)] == [64, 64, 128, 1024, 2048]


@pytest.mark.parametrize("private", [False, True])
def test_the_largest_batch_that_memory_has_room_for_is_taken(private):
    sizes = architecture("meta-llama/Llama-3.2-3B", 16, "all-linear")
    seen = []
    for gib in (80, 40, 24, 16, 12, 8):
        found = drafts.fit(sizes, gib << 30, 512, "gpu", private=private, four_bits=True)
        assert found.batch * found.accumulation == drafts.SEQUENCES["gpu"]
        assert not (private and found.checkpointing)
        used = memory.client(
            sizes,
            "int4" if found.quantization == "nf4" else "bfloat16",
            found.batch,
            512,
            checkpointing=found.checkpointing,
            by_example=private,
        )
        if not private:
            assert used.total <= 0.8 * (gib << 30)
        seen.append(used.total)
    assert seen == sorted(seen, reverse=True) or private
    assert drafts.fit(sizes, None, 512, "gpu", private=private, four_bits=True) == Fit(4, 4)
    # Nothing fits: the smallest there is, and the check says that it does not.
    assert drafts.fit(sizes, 1, 512, "gpu", private=private, four_bits=False).batch == 1

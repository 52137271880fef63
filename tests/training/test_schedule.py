"""Learning-rate schedules, against transformers' and a plain reading."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from fedsrd import recipe as recipes
from fedsrd.errors import RecipeError
from fedsrd.training.options import TrainingOptions
from fedsrd.training.schedule import factor

KINDS = ["constant", "linear", "cosine"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [1, 2, 7, 50])
def test_without_a_warm_up_it_is_transformers_own(kind, total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=total)
    for place in range(total):
        assert factor(kind, place, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(0, 40), st.floats(0, 1))
def test_it_is_the_plain_formula_and_never_zero(kind, total, warmup, final):
    for place in range(total):
        found = factor(kind, place, total, warmup=warmup, final=final)
        assert 0 < found <= 1
        if place < warmup:
            assert found == pytest.approx((place + 1) / (warmup + 1))
        elif kind == "linear":
            assert found == pytest.approx(final + (1 - final) * (total - place) / (total - warmup))
        elif kind == "cosine":
            angle = math.pi * (place - warmup) / (total - warmup)
            assert found == pytest.approx(final + (1 - final) * 0.5 * (1 + math.cos(angle)))
        else:
            assert found == 1


def test_rounds_and_steps_multiply():
    options = TrainingOptions(steps=4, learning_rate=2.0, schedule="linear", round_schedule="linear")
    assert [options.rate(1, 2, step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert [options.rate(2, 2, step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_without_a_schedule_nothing_new_is_in_the_fingerprint():
    assert "schedule" not in TrainingOptions().fingerprint()
    assert '"warmup":1' in TrainingOptions(warmup=1).fingerprint()


def test_a_warm_up_that_never_ends_is_refused():
    with pytest.raises(RecipeError, match=r"training.warmup = 3: expected fewer than rounds = 3"):
        recipes.load(None, ["rounds=3", "training.warmup=3"])
    with pytest.raises(RecipeError, match=r"round_warmup = 4: expected fewer than steps = 4"):
        recipes.load(None, ["training.round_warmup=4"])

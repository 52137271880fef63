"""Updates as integers on a common grid, against a plain float64 reading of `federation.sums`."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import TABLE, Federation, build, config_of

from fedsrd.core.tensors import Draw, SparseTensor, TensorSpec, TensorTable
from fedsrd.errors import FederationError, PayloadError
from fedsrd.federation import transition
from fedsrd.federation.messages import TrainTask
from fedsrd.federation.sum_codec import SumCodec
from fedsrd.federation.sums import WHOLE, Form, Steps, Terms, opened, read_words
from fedsrd.methods import RoundContext
from fedsrd.privacy import packed
from fedsrd.wire import Kind, SumOptions
from fedsrd.wire.values import BFLOAT16

SMALL = TensorTable((TensorSpec("a", (5, 7)), TensorSpec("b", (23,)), TensorSpec("c", (3, 3))))
ELEMENTS = {"a": Draw(11, 0.5), "b": None, "c": None}
ugly = st.sampled_from([0.0, -0.0, 1e-45, 3e-39, 1e-20, -2.0, 1e15, -3e30])


def word(number):
    return int(np.float32(number).view(np.uint32)) >> 16


def number(word):
    return float(BFLOAT16.floats(np.array([word], dtype=np.uint16))[0])


@st.composite
def rounds(draw, most=4095):
    """A form, its terms, clients' deltas and numbers of examples."""
    clients = draw(st.integers(1, 6))
    levels = draw(st.sampled_from([1, 2, 7, 127, most]))
    options = SumOptions(
        levels=levels,
        threshold=draw(st.sampled_from([None, 0.5, 1.6])),
        range=draw(st.sampled_from([1.0, 4.0, 16.0])),
        examples=draw(st.sampled_from([None, 10])),
    )
    form = Form(SMALL, ELEMENTS, options, clients + draw(st.integers(0, 3)))
    steps = Steps({name: word(draw(st.sampled_from([1e-3, 0.1, 1.0, 37.0]))) for name in SMALL.shapes})
    seed = draw(st.integers(0, 2**32))
    special = draw(st.one_of(st.none(), ugly))
    deltas = []
    for client in range(clients):
        random = np.random.default_rng([seed, client])
        delta = {}
        for spec in SMALL.specs:
            values = torch.from_numpy(random.standard_normal(spec.shape)).float()
            if special is not None:
                values.view(-1)[random.integers(0, spec.elements, 2)] = special
            where = ELEMENTS[spec.name]
            delta[spec.name] = (
                SparseTensor.from_dense(values) if where is None else SparseTensor.from_draw(values, spec.name, where)
            )
        deltas.append(delta)
    return form, steps, deltas, [1 + int(np.random.default_rng(seed).integers(0, 20)) for _ in deltas]


def codecs(form, steps, examples):
    return [SumCodec(form, steps.terms(form), 5 + place, count) for place, count in enumerate(examples)]


@settings(max_examples=150, deadline=None)
@given(rounds())
def test_the_sum_is_the_weighted_mean_of_what_is_received(round_):
    form, steps, deltas, examples = round_
    total = form.layout.zeros()
    received, weights = [], []
    for codec, delta, count in zip(codecs(form, steps, examples), deltas, examples, strict=True):
        received.append(codec.received(delta))
        words = read_words(codec.payload(delta, Kind.UPLINK, 3, 2), form, 3, 2)
        packed.add_(total, words, form.layout)
        cap = form.options.examples
        weights.append(1.0 if cap is None else max(1, round(WHOLE * min(count, cap) / cap)) / WHOLE)
    mean, wanted = opened(total, form, steps, len(deltas))
    for name in SMALL.shapes:
        exact = sum(weight * one[name].dense().double() for weight, one in zip(weights, received, strict=True)) / sum(
            weights
        )
        assert torch.allclose(mean[name].dense().double(), exact, rtol=1e-5, atol=1e-5 * number(steps.words[name]))
        assert mean[name].draw == ELEMENTS[name]
    # Steps are the mean of what clients would have, in bfloat16 words, at most a factor of four away.
    following = steps.following(form, wanted, len(deltas))
    for name, found in following.words.items():
        assert abs(found - steps.words[name]) <= 256
        assert 0x2000 <= found <= 0x5F00


@settings(max_examples=150, deadline=None)
@given(rounds())
def test_every_element_is_the_nearest_level_or_next_to_it(round_):
    form, steps, deltas, examples = round_
    options = form.options
    (codec, *_), delta, count = codecs(form, steps, examples), deltas[0], examples[0]
    weight = (
        1.0
        if options.examples is None
        else max(1, round(WHOLE * min(count, options.examples) / options.examples)) / WHOLE
    )
    found = codec.received(delta)
    for name in SMALL.shapes:
        exact = delta[name].values.double().numpy() * weight
        step = number(steps.words[name])
        levels = found[name].values.double().numpy() * weight / step
        assert np.allclose(levels, np.rint(levels), rtol=1e-5, atol=1e-5)
        inside = np.abs(exact) <= options.levels * step
        if options.threshold is None:
            assert (np.abs(levels - exact / step)[inside] <= 1 + 1e-5 * (1 + np.abs(exact / step)[inside])).all()
            assert np.allclose(np.abs(levels)[~inside], options.levels)
            continue
        size = np.abs(exact)
        zero = min(options.threshold * size.mean(), 0.95 * size.max())
        edge = np.abs(size - zero) <= 1e-5 * zero
        wanted = np.where(size < zero, 0, np.clip(np.rint(size / step), 1, options.levels))
        near = edge | (np.abs(size / step - np.floor(size / step) - 0.5) < 1e-4) | (size == 0)
        assert np.allclose(np.abs(levels)[~near], wanted[~near])


def test_random_rounding_is_right_in_the_mean():
    options = SumOptions(levels=7, range=4.0)
    table = TensorTable((TensorSpec("a", (50,)),))
    form = Form(table, {"a": None}, options, 4)
    steps = Steps({"a": word(0.25)})
    values = torch.linspace(-1.6, 1.6, 50)
    delta = {"a": SparseTensor.from_dense(values)}
    draws = [SumCodec(form, steps.terms(form), seed, 1).received(delta)["a"].values for seed in range(3000)]
    error = (torch.stack(draws).mean(0) - values).abs().max()
    assert error < 5 * 0.5 * 0.25 / math.sqrt(3000)


def test_steps_come_near_the_updates_within_rounds():
    """From a thousand times too far to where the range is that of the updates."""
    options = SumOptions(levels=127, range=4.0)
    table = TensorTable((TensorSpec("a", (4000,)),))
    form = Form(table, {"a": None}, options, 3)
    steps = Steps.first(table, options, 1.0)
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(4000)).float() * 1e-3
    for _ in range(9):
        total = form.layout.zeros()
        for client in range(3):
            codec = SumCodec(form, steps.terms(form), client, 1)
            payload = codec.payload({"a": SparseTensor.from_dense(values)}, Kind.UPLINK, 1, 0)
            packed.add_(total, read_words(payload, form, 1, 0), form.layout)
        _, wanted = opened(total, form, steps, 3)
        steps = steps.following(form, wanted, 3)
    mean = float(values.abs().mean())
    assert number(steps.words["a"]) == pytest.approx(mean * 4.0 / 127, rel=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_sent(bad):
    form = Form(SMALL, ELEMENTS, SumOptions(), 3)
    steps = Steps({name: word(1.0) for name in SMALL.shapes})
    values = torch.ones(23)
    values[4] = bad
    with pytest.raises(ValueError, match="b: a value is NaN or infinite"):
        SumCodec(form, steps.terms(form), 0, 1).received({"b": SparseTensor.from_dense(values)})


def test_other_elements_than_everybodys_are_not_sent():
    form = Form(SMALL, ELEMENTS, SumOptions(), 3)
    codec = SumCodec(form, Steps({name: word(1.0) for name in SMALL.shapes}).terms(form), 0, 1)
    with pytest.raises(ValueError, match="a: other elements than all clients send"):
        codec.received({"a": SparseTensor.from_dense(torch.ones(5, 7))})
    with pytest.raises(ValueError, match="d does not travel in this round"):
        codec.received({"d": SparseTensor.from_dense(torch.ones(5))})


@settings(max_examples=60, deadline=None)
@given(rounds(most=127), st.integers(0, 200), st.integers(1, 1000))
def test_a_sum_that_nobody_can_send_is_refused_or_within_bounds(round_, place, by):
    form, steps, deltas, examples = round_
    assume(form.clients > len(deltas))
    total = form.layout.zeros()
    for codec, delta in zip(codecs(form, steps, examples), deltas, strict=True):
        packed.add_(total, read_words(codec.payload(delta, Kind.UPLINK, 1, 0), form, 1, 0), form.layout)
    vector = packed.unpack(total, form.layout).astype(np.int64)
    vector[place % len(vector)] += by
    with contextlib.suppress(FederationError):
        opened(packed.pack(vector, form.layout), form, steps, len(deltas))
    if np.abs(packed.unpack(packed.pack(vector, form.layout), form.layout)).max() > len(deltas) * form.options.levels:
        with pytest.raises(FederationError, match="nobody can tell who"):
            opened(packed.pack(vector, form.layout), form, steps, len(deltas))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (Terms(4, (word(1.0),)), "1 steps; expected one for each of 6 tensors"),
        (Terms(4, (word(1.0),) * 5 + (0,)), "as bfloat16 words of positive numbers"),
        (Terms(4, (word(1.0),) * 5 + (0x7F80,)), "as bfloat16 words of positive numbers"),
        (Terms(1 << 31, (word(1.0),) * 6), "need 44 bits an element: expected at most 32"),
    ],
)
def test_terms_that_do_not_fit_are_refused_before_anything_is_made(terms, message):
    config = summed("fedavg")
    with pytest.raises(PayloadError, match=message):
        transition.client_context(config, 1, "c", None, {}, transition.Summing(terms, 1))


def summed(method, **options):
    from dataclasses import replace

    return replace(config_of(build(method)), sum=SumOptions(**options))


def test_a_task_and_its_federation_must_agree():
    federation = Federation(build("fedavg"))
    client = federation.clients[0]
    task = federation.server.task(client.name)
    with pytest.raises(PayloadError, match="do not agree on whether updates are added up"):
        client.prepare(TrainTask(task.round, task.version, task.digest, task.sync, Terms(1, (1,))))


@pytest.mark.parametrize(("method", "options"), [("cyclic", {}), ("fedavg", {"feedback": "ef14"})])
def test_feedback_keeps_exactly_what_the_sum_has_not(method, options):
    from dataclasses import replace

    config = replace(config_of(build(method, **options)), sum=SumOptions(levels=1, threshold=1.6))
    form = config.form(1, 4)
    steps = Steps.first(config.uplink_table, config.sum, 0.05)
    context, codec = transition.client_context(config, 1, "c", None, {}, transition.Summing(steps.terms(form), 1))
    state = config.start()
    plan = config.method.local_plan(state, context)
    random = np.random.default_rng(0)
    after = {n: t + torch.from_numpy(random.standard_normal(t.shape)).float() * 0.05 for n, t in plan.start.items()}
    delta, kept = transition.update(config, plan, after, context)
    arrives = codec.received(delta)
    for name, tensor in after.items():
        whole = tensor - plan.start[name]
        (residual,) = (value for key, value in kept.items() if name in key)
        assert torch.equal(residual, whole - arrives[name].dense())


def test_elements_are_what_clients_send():
    """Of every method that says so, in every round of a cycle."""
    for name, options in (
        ("fedavg", {}),
        ("fedavg", {"sparsifier": "cyclic", "period": 2}),
        ("ffa-lora", {}),
        ("cyclic", {"period": 3, "period_a": 2}),
        ("cyclic", {"momentum": 0.5}),
        ("fedsrd-e", {"decompose_at": "client", "sparsifier": "cyclic", "period": 2}),
        ("fedsrd-ef", {"sparsifier": "dense", "alpha": 0.5}),
    ):
        config = config_of(build(name, **options))
        assert config.method.same_elements
        state = config.start()
        sent = dict.fromkeys(TABLE.shapes, 0)
        for number in range(1, 13):
            context, _ = transition.client_context(config, number, "c", None, {})
            plan = config.method.local_plan(state, context)
            random = np.random.default_rng(number)
            after = {
                n: t + (torch.from_numpy(random.standard_normal(t.shape)).float() * 0.1 if n in plan.trained else 0)
                for n, t in plan.start.items()
            }
            delta, _ = transition.update(config, plan, after, context)
            elements = config.method.elements(config.uplink_table, RoundContext(number, config.seed))
            assert {n: s.draw for n, s in delta.items()} == dict(elements)
            for n, sparse in delta.items():
                sent[n] += sparse.count
        for n, count in sent.items():
            # Every element as often as any other, and none left out.
            if name != "ffa-lora" or "lora_B" in n:
                assert count % math.prod(TABLE.shapes[n]) == 0, (name, n)
                assert count

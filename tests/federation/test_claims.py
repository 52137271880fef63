"""Numbers that clients send about themselves: bounded in one place, and harmless to records and report whatever they
are.
"""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import TABLE, Federation, build

from fedsrd.errors import PayloadError
from fedsrd.federation.local import LocalEngine
from fedsrd.federation.messages import LARGEST_LOSS, LONGEST_PHASE, MOST_EXAMPLES, Phases, Update
from fedsrd.federation.records import round_record, start_record
from fedsrd.federation.remote import header
from fedsrd.federation.remote.header import Envelope
from fedsrd.federation.rounds import Rounds
from fedsrd.recipe import ParticipationSection
from fedsrd.runs.records import read_rounds, rounds_text

ODD = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 1.7e308, math.nan, math.inf, None, "x", [1.0], {}, True]),
)


@given(ODD, ODD, st.dictionaries(st.sampled_from([*Phases.model_fields, "more"]), ODD))
def test_whatever_is_claimed_is_refused_or_within_bounds(examples, loss, seconds):
    update = Update("a", 1, examples, b"", loss, seconds)
    possible = examples is None or (
        isinstance(examples, int | float) and 1 <= examples <= MOST_EXAMPLES and examples == int(examples)
    )
    if not possible:
        with pytest.raises(PayloadError, match="about itself is wrong at examples"):
            update.checked()
        return
    found = update.checked()
    assert (found.examples is None) == (examples is None)
    assert found.examples is None or (isinstance(found.examples, int) and 1 <= found.examples <= MOST_EXAMPLES)
    assert found.loss is None or abs(found.loss) <= LARGEST_LOSS
    assert set(found.seconds) <= set(Phases.model_fields)
    assert all(0 <= value <= LONGEST_PHASE for value in found.seconds.values())
    # What can be stays as it is.
    if isinstance(loss, float) and abs(loss) <= LARGEST_LOSS:
        assert found.loss == loss
    for phase in Phases.model_fields:
        if isinstance(value := seconds.get(phase), float) and 0 <= value <= LONGEST_PHASE:
            assert found.seconds[phase] == value


@given(ODD, st.dictionaries(st.sampled_from([*Phases.model_fields, "more"]), ODD))
def test_loss_and_seconds_never_cost_an_update_its_place_across_a_network(loss, seconds):
    tree = {"kind": "train-reply", "name": "a", "round": 1, "held": 1, "examples": 3, "loss": loss, "seconds": seconds}
    found, _ = header.unpack(Envelope(json.dumps(tree)), header.TrainReply)
    plain = Update("a", 1, 3, b"", loss, seconds).checked()
    assert (found.examples, found.loss, found.seconds.told()) == (3, plain.loss, plain.seconds)


class Lying(LocalEngine):
    """An engine in one process whose clients say something else about themselves."""

    def __init__(self, federation, lies):
        super().__init__(federation.clients, None)
        self.lies = lies

    def ask(self, tasks):
        for name, task in tasks.items():
            update = self.clients[name].train(task, lambda *_: None)
            said = {"examples": update.examples, "loss": update.loss, "seconds": update.seconds}
            said |= self.lies.get(name, {})
            yield Update(name, update.round, said["examples"], update.payload, said["loss"], said["seconds"])


def played(lies, tmp_path, **server):
    """The records of a round of three clients of whom some lie, as a file says them, and the round."""
    federation = Federation(build("fedavg"), keys=(1, 2, 3), **server)
    told = []
    rounds = Rounds(federation.server, Lying(federation, lies), ParticipationSection(attempts=1), 0, told.append)
    done = rounds.one_round()
    file = tmp_path / "rounds.jsonl"
    start = start_record(0, [], "0" * 64, {"eval": {}})
    file.write_text(rounds_text([start, round_record(done, TABLE, done.seconds, {"eval": {}})]))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    return read_rounds(file)[1], done


@pytest.mark.parametrize("examples", [10**400, 10**18, MOST_EXAMPLES + 1, 0, -5, math.nan, math.inf, [3], "many"])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_a_number_of_examples_that_cannot_be_leaves_its_client_out(examples, weighting, tmp_path):
    record, _ = played({"c1": {"examples": examples}}, tmp_path, weighting=weighting)
    assert list(record.rejected) == ["c1"]
    assert record.rejected["c1"].startswith("what the client says about itself is wrong at examples: expected")
    assert list(record.bytes_up) == ["c0", "c2"]


def test_a_number_of_examples_that_is_not_told_costs_nothing_where_it_does_not_count(tmp_path):
    record, _ = played({"c1": {"examples": None}}, tmp_path)
    assert not record.rejected
    record, _ = played({"c1": {"examples": None}}, tmp_path, weighting="examples")
    assert list(record.rejected) == ["c1"]
    assert 'the site does not tell its number of examples, which weighting = "examples" needs' in record.rejected["c1"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e308, None, "x", [1.0], 10**400])
def test_a_loss_that_cannot_be_is_null_in_the_record_and_costs_nothing(loss, tmp_path):
    record, _ = played({"c1": {"loss": loss}}, tmp_path)
    assert not record.rejected
    assert math.isnan(record.train_loss_by_client["c1"])
    assert record.train_loss_by_client["c0"] == record.train_loss == 1.0
    line = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[1])
    assert line["train_loss_by_client"] == {"c0": 1.0, "c1": None, "c2": 1.0}


def test_nobody_tells_a_loss(tmp_path):
    record, _ = played({name: {"loss": math.nan} for name in ("c0", "c1", "c2")}, tmp_path)
    assert math.isnan(record.train_loss)


def test_seconds_that_cannot_be_do_not_count(tmp_path):
    lies = {"c0": {"seconds": {"train": 1.7e308, "sleep": 9.0}}, "c1": {"seconds": {"train": 1.7e308, "encode": 2.0}}}
    calm, honest = played({}, tmp_path)
    record, done = played(lies | {"c2": {"seconds": {"train": 1.0}}}, tmp_path)
    assert not record.rejected
    assert {phase: record.seconds[phase] for phase in Phases.model_fields} == {"train": 1, "sparsify": 0, "encode": 2}
    assert done.seconds.keys() == honest.seconds.keys()
    assert calm.seconds.keys() == record.seconds.keys()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e300, "much", None])
def test_an_epsilon_that_is_none_counts_as_no_promise(value):
    said = Update("a", 1, 5, b"", None, {}, value, value).checked()
    assert said.epsilon is None
    assert said.delta is None
    kept = Update("a", 1, 5, b"", None, {}, 2.5, 1e-6).checked()
    assert (kept.epsilon, kept.delta) == (2.5, 1e-6)

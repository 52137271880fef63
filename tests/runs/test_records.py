"""What runs leave, read back: old files, newer ones, and those that somebody's disk or editor has damaged."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.errors import RunFolderError
from fedsrd.runs.records import (
    FORMAT,
    Quality,
    RoundRecord,
    Summary,
    checked,
    read_rounds,
    read_summary,
    rounds_text,
    summary_text,
)

START = RoundRecord(round=0, digest="00", bytes_up={}, bytes_down={"a": 64}, eval={"code": 2.5})
ROUND = RoundRecord(
    round=1,
    digest="01",
    factor_down="B",
    bytes_up={"a": 10},
    bytes_down={"a": 20},
    seconds={"train": 0.5},
    train_loss=2.25,
    train_loss_by_client={"a": 2.25},
    attempts=1,
    eval={},
    benchmarks={"tort-law": {"alias": "tort-law", "sample_len": 2, "acc,none": 0.5, "acc_stderr,none": None}},
    samples={"code": [{"prompt": "p", "wanted": "w", "answer": "a"}]},
)
SUMMARY = Summary(
    name="run",
    method="fedsrd",
    seed=0,
    rounds=1,
    clients=1,
    parameters=96,
    bytes_up=10,
    bytes_down=84,
    ratio_to_dense_float32=0.1,
    ratio_to_dense_bfloat16=0.2,
    seconds={"train": 0.5},
    metric="response NLL, nats a token",
    base=Quality(by_set={"code": 2.5}, in_domain=2.5, out_of_domain=None),
    final=None,
    digest="01",
)


@pytest.fixture
def rounds(tmp_path):
    file = tmp_path / "rounds.jsonl"
    file.write_text(rounds_text([START, ROUND]))
    return file


@pytest.fixture
def summary(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(summary_text(SUMMARY))
    return file


def change(file, number, **keys):
    """Sets keys of one line's object; None takes one out."""
    lines = file.read_text().splitlines()
    tree = {**json.loads(lines[number - 1]), **keys}
    lines[number - 1] = json.dumps({key: value for key, value in tree.items() if value is not None})
    file.write_text("".join(line + "\n" for line in lines))


def test_what_is_written_is_read(rounds, summary):
    found = read_rounds(rounds)
    assert found == [START, ROUND]
    assert type(found[1].benchmarks["tort-law"]["sample_len"]) is int
    assert found[1].samples["code"][0].answer == "a"
    assert read_summary(summary) == SUMMARY


def test_the_format_stands_once_in_a_file_and_round_0_has_only_what_it_knows(rounds, summary):
    first, second = (json.loads(line) for line in rounds.read_text().splitlines())
    assert first == {"format": FORMAT, "round": 0, "digest": "00", "bytes_up": {}, "bytes_down": {"a": 64}} | {
        "eval": {"code": 2.5}
    }
    assert "format" not in second
    assert json.loads(summary.read_text())["format"] == FORMAT


def test_a_folder_from_before_formats_is_read(rounds, summary):
    change(rounds, 1, format=None)
    # Before attempts were counted, and density by layer.
    change(rounds, 2, attempts=None)
    summary.write_text(json.dumps(SUMMARY.plain()))
    assert read_rounds(rounds) == [START, ROUND]
    assert read_summary(summary) == SUMMARY


def test_a_loss_that_is_no_number_is_a_result(rounds):
    change(rounds, 2, eval={"code": math.nan}, train_loss=math.inf)
    assert math.isnan(read_rounds(rounds)[1].eval["code"])


@given(st.lists(st.floats(), min_size=5, max_size=5))
def test_a_file_holds_no_number_that_is_none_in_json(values):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def alike(one, other):
        return one == other or (math.isnan(other) and not math.isfinite(one))

    loss, mine, evaluated, own, accuracy = values
    record = ROUND.model_copy(
        update={
            "train_loss": loss,
            "train_loss_by_client": {"a": mine},
            "eval": {"code": evaluated},
            "eval_by_client": {"a": {"code": own}},
            "benchmarks": {"tort-law": {"acc,none": accuracy, "alias": "x", "none": None}},
        }
    )
    text = rounds_text([record])
    json.loads(text, parse_constant=refuse)
    tree = json.loads(text)
    del tree["format"]
    found = checked(RoundRecord, tree, "here")
    assert alike(loss, found.train_loss)
    assert alike(mine, found.train_loss_by_client["a"])
    assert alike(evaluated, found.eval["code"])
    assert alike(own, found.eval_by_client["a"]["code"])
    benchmark = found.benchmarks["tort-law"]
    assert benchmark == {"acc,none": accuracy if math.isfinite(accuracy) else None, "alias": "x", "none": None}
    quality = Quality(by_set={"x": mine}, in_domain=loss, out_of_domain=own)
    json.loads(summary_text(SUMMARY.model_copy(update={"base": quality})), parse_constant=refuse)


@pytest.mark.parametrize("newer", [FORMAT + 1, 99])
def test_a_newer_format_asks_for_an_upgrade(rounds, summary, newer):
    # Keys that this version does not know must not be what is complained of.
    change(rounds, 1, format=newer, invented=1)
    with pytest.raises(RunFolderError, match=rf"line 1: written by a newer fedsrd \(format {newer},.*upgrade"):
        read_rounds(rounds)
    summary.write_text(json.dumps({"format": newer}))
    with pytest.raises(RunFolderError, match=r"summary.json: written by a newer fedsrd .*upgrade"):
        read_summary(summary)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_text(file.read_text()[:-20]), "line 2: not JSON"),
        (lambda file: file.write_text("\n" + file.read_text()), "line 1: not JSON"),
        (lambda file: file.write_text("[]\n"), "line 1: expected a JSON object, found list"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "cannot be read as UTF-8"),
        (lambda file: file.unlink(), "no such file"),
        (lambda file: change(file, 2, digest=None), "line 2: digest: missing"),
        (lambda file: change(file, 2, bytes_up="many"), "line 2: bytes_up = 'many': .*a table"),
        (lambda file: change(file, 2, bytes_up={"a": "many"}), "line 2: bytes_up.a = 'many': .*a whole number"),
        (lambda file: change(file, 2, invented=1), "line 2: invented = 1: unknown key"),
        (lambda file: change(file, 2, seconds={"train": math.nan}), "line 2: seconds.train = nan: .*finite"),
        (lambda file: change(file, 1, format="one"), "line 1: format 'one' is none"),
        (lambda file: change(file, 1, format=0), "line 1: format 0 is none"),
        (
            lambda file: file.write_text(file.read_text() + file.read_text().splitlines()[1]),
            "line 3: round 1, where round 2 belongs",
        ),
        (lambda file: file.write_text(file.read_text().splitlines()[1]), "line 1: round 1, where round 0 belongs"),
        (lambda file: file.write_text("[" * 100_000), "line 1: not JSON"),
    ],
)
def test_damage_is_named_with_its_line_and_what_to_do(rounds, damage, says):
    damage(rounds)
    with pytest.raises(RunFolderError, match=rf"rounds\.jsonl.*{says}") as found:
        read_rounds(rounds)
    assert "no such file" in str(found.value) or "UTF-8" in says or "put a copy in its place" in str(found.value)


def test_a_summary_that_lacks_a_key_or_is_cut_short(summary):
    whole = summary.read_text()
    tree = json.loads(whole)
    del tree["parameters"], tree["base"]["in_domain"]
    summary.write_text(json.dumps(tree))
    with pytest.raises(RunFolderError, match=r"summary\.json: parameters: missing; base\.in_domain: missing; the file"):
        read_summary(summary)
    summary.write_text(whole[:40])
    with pytest.raises(RunFolderError, match=r"summary\.json: not JSON"):
        read_summary(summary)

"""What the server shows: in a log, on a terminal, and in its structured log."""

import io

from fedsrd.federation.remote.log import Log, resident_mib
from fedsrd.report.monitor import Monitor
from fedsrd.report.screen import Screen
from fedsrd.runs.records import RoundRecord

START = RoundRecord(round=0, digest="", bytes_up={}, bytes_down={}, eval={})
RECORD = START.model_copy(
    update={"round": 1, "train_loss": 2.5, "rejected": {"b": "no answer within 9 s"}, "eval": {"code": 1.5}}
)


def play(monitor):
    monitor.event("joined", client="a", held=-1, resync=False)
    monitor.event("joined", client="b", held=3, resync=True)
    monitor.event("refused", node=12, reason="two are called a")
    for client in ("a", "b"):
        monitor.event("asked", client=client, round=1, bytes=2048)
    monitor.event("answered", client="a", round=1, bytes=4096, seconds=1.25, loss=2.5)
    monitor.event("silent", client="b", round=1, reason="no answer within 9 s", seconds=9.0)


def test_a_log_has_a_line_an_event_and_a_table_a_round():
    console = Screen(file=io.StringIO(), width=100)
    with Monitor(console, 5) as monitor:
        play(monitor)
        monitor.round_done(START)
        monitor.round_done(RECORD)
        monitor.event("failed", client="b", reason="not at the last version: no answer")
        monitor.event("settled", client="a", bytes=5, digest="x", reason=None)
    text = console.file.getvalue()
    for expected in (
        "a is here, new",
        "b is here, with version 3 that is not this run's; it gets the whole state",
        "12 is refused: two are called a",
        "round 1/5  a  answered  up 4.0 KiB  1.2 s",
        "round 1/5  b  silent: no answer within 9 s",
        "Round 1/5, loss 2.500",
        "NLL code 1.50",
        "b: not at the last version",
        "a is at the last version",
    ):
        assert expected in text
    assert text.count("Round 1/5") == 1
    assert max(map(len, text.splitlines())) <= 100


def test_a_terminal_has_a_table_that_moves_and_no_line_an_event():
    console = Screen(file=io.StringIO(), width=100, force_terminal=True)
    with Monitor(console, 5) as monitor:
        play(monitor)
        monitor.round_done(RECORD)
    text = console.file.getvalue()
    assert "Round 1/5, loss 2.500" in text
    assert "answered  up" not in text


def test_an_answer_that_is_left_out_says_so():
    console = Screen(file=io.StringIO(), width=100)
    monitor = Monitor(console, 5)
    monitor.event("asked", client="a", round=2, bytes=0)
    monitor.event("answered", client="a", round=2, bytes=4096, seconds=1.0, loss=2.5)
    monitor.round_done(RECORD.model_copy(update={"round": 2, "rejected": {"a": "its norm is too large"}, "eval": {}}))
    assert "left out: its norm is too large" in console.file.getvalue()


def test_the_log_is_one_object_a_line(tmp_path):
    import json

    log = Log(tmp_path / "new" / "log.jsonl")
    log.write("asked", client="a", reason="two\nlines")
    log.write("round", memory_mib=resident_mib())
    first, second = (json.loads(line) for line in log.path.read_text().splitlines())
    assert (first["event"], first["client"], first["reason"]) == ("asked", "a", "two\nlines")
    assert second["memory_mib"] is None or second["memory_mib"] > 10
    assert first["time"] <= second["time"]

"""Whatever stands in a name, a reason, a path or a title: the terminal shows it and does nothing that it says."""

import ast
import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.errors import MarkupError

import fedsrd
from fedsrd.compare.plan import Run
from fedsrd.evaluation.scores import Score
from fedsrd.report import comparison, evaluation, outcome, payload, plan, progress, terminal
from fedsrd.report.monitor import Monitor
from fedsrd.report.screen import Screen, styled
from fedsrd.runs.records import Quality, RoundRecord, Summary
from fedsrd.runs.results import Failure, Results, Row, Spread

SOURCES = Path(fedsrd.__file__).parent
HOSTILE = (
    "[/x]",
    "[link=https://example.org]x[/link]",
    "[red]",
    "[bold]x[/red]",
    ":skull:",
    "\x1b]8;;https://example.org\x07x",
    "\x1b[2J\x1b[H",
    "\x9b2J",
    "\x07\x08\r\x00",
    "\u202ex\u2066",
    "a\ud800b",
    "{task.fields}",
    "\\[",
)
PHASES = ("train", "sparsify", "encode", "decode", "broadcast", "server", "apply", "evaluate")
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.lists(st.sampled_from([*HOSTILE, "x", "[", "]", "/", "\n"]), min_size=1, max_size=6).map("".join),
)
# What rich itself writes to a terminal that it knows: colours, the cursor, and clearing a line (never the screen).
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|\d*[ABCDGK])|\r")


def record(text, number=1):
    return RoundRecord(
        round=number,
        digest="",
        factor_down=text,
        bytes_up={text: 5},
        bytes_down={text: 5},
        train_loss=1.0,
        rejected={text: text, "other": text},
        eval={text: 1.0},
        seconds=dict.fromkeys(PHASES, 1.0),
    )


def summary(text):
    quality = Quality(by_set={text: 1.0}, in_domain=1.0, out_of_domain=1.0)
    return Summary(
        name=text,
        method=text,
        seed=1,
        rounds=1,
        clients=1,
        parameters=1,
        bytes_up=1,
        bytes_down=1,
        ratio_to_dense_float32=0.1,
        ratio_to_dense_bfloat16=0.1,
        seconds={text: 1.0},
        metric=text,
        base=quality,
        final=quality,
        digest=text,
    )


def results(text):
    one = Spread(mean=1.0, sd=0.1, n=2)
    curve = {"base": {text: 1.0}, "out_of_domain": [1.0]}
    row = Row.model_construct(
        label=text,
        method=text,
        reference=False,
        personal=True,
        clients=2,
        rounds=1,
        runs=1,
        point={text: text},
        search={},
        failed=[Failure(seed=0, reason=f"first\n{text}")],
        base=one,
        in_domain=one,
        own=one,
        out_of_domain=one,
        by_set={text: one},
        bytes_up=one,
        bytes_down=one,
        bytes_to_target=one,
        seconds={text: one},
        curves=[curve],
        benchmarks={text: {"unit": "%", "title": text, "base": 1.0, "stderr": 1.0, "after": one}},
    )
    return Results.model_construct(name=text, seeds=[0], grid_seeds=[], target=1.0, rows=[row])


def planned(text):
    setting = {"clients": 1, "rounds": 1, "up": 1e6, "down": 1e6, "density": 0.1, "batch": 1, "length": 8}
    method = {
        "method": text,
        "values": text,
        "up_bytes": 1,
        "down_bytes": 1,
        "total_bytes": 1,
        "link_seconds_a_round": 1.0,
    }
    return {
        "model": text,
        "parameters": 1,
        "adapter_parameters": 1,
        "adapted_modules": 1,
        "dense_float32_bytes": 1,
        "setting": {**setting, "checkpointing": True},
        "methods": [method],
        "client_memory": {"base": 1, "adapter": 1, "activations": 1, "logits": 1, "total": 1},
        "server_memory": 1,
        "disk": {"client": 1, "run folder": 1},
    }


def displays(console, text):
    """Everything that people are shown, with the text in every place that takes one."""
    with terminal.RunDisplay(console, 3) as display:
        display.say(text)
        display.warn(text)
        display.activity(1, text, 1, 2, text)
        display.transfer(text, 1, 10**7)
        display.round_done(record(text, 0))
        display.round_done(record(text))
        display.progress.refresh()
    with evaluation.EvaluationDisplay(console) as display:
        display.activity(text, text, 1, 2)
        display.progress.refresh()
    with progress.CompareDisplay(console) as display:
        sets = [SimpleNamespace(name=text, in_domain=True)]
        recipe = SimpleNamespace(rounds=1, evaluation=SimpleNamespace(sets=sets))
        run = Run(text, (("training.x", text),), 0, recipe)
        display.run_started(run, 1, 2)
        display.activity(1, text, 1, 2, text)
        display.round_done(record(text))
        display.progress.refresh()
        display.warn(text)
        display.run_failed(run, text)
        display.run_done(run, Path("x"), 1.0)
    with Monitor(console, 3) as board:
        for kind in ("joined", "left", "refused", "settled", "failed", text):
            board.event(kind, client=text, reason=text, held=0, resync=kind == "joined")
        board.event("refused", node=1, reason=text)
        for kind, more in (("asked", {"bytes": 1}), ("failed", {"seconds": 1.0}), ("silent", {"seconds": 1.0})):
            board.event(kind, client=text, round=1, reason=text, **more)
        board.say(text)
        board.warn(text)
        board._live.refresh()
        board.round_done(record(text))
    for table in evaluation.closing_tables([record(text)], summary(text)):
        console.print(table)
    console.print(terminal.totals(summary(text)))
    score = Score(text, text, text, True, "%", 1.0, None, 1)
    console.print(evaluation.scores_table({text: [score], "other": [score]}))
    for table in comparison.terminal_tables(results(text).model_dump()):
        console.print(table)
    outcome.show(console, results(text), Path(text))
    found = {"kind": text, "travelling": {text: 1}}
    found["sections"] = {text: {"bytes": 1, "entropy_bytes": 1, "bits_per_element": 1.0}}
    found["tensors"] = {text: {"travels": text, "density": 0.5}}
    console.print(*payload.payload_tables(found, text))
    console.print(*plan.plan_tables(planned(text)))
    console.print(text, f"into {text}", styled("bold", text, text))


@pytest.mark.parametrize("terminal_there", [True, False])
@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(text=TEXTS)
def test_a_display_shows_what_it_is_told_and_does_nothing_else(terminal_there, text):
    out = io.StringIO()
    colours = "truecolor" if terminal_there else None
    console = Screen(file=out, width=4000, force_terminal=terminal_there, color_system=colours)
    displays(console, text)
    written = OURS.sub("", out.getvalue()) if terminal_there else out.getvalue()
    assert not {c for c in written if not c.isprintable()} - {"\n", "\t"}
    # No link was opened, and no tag swallowed.
    assert "\x1b]8" not in out.getvalue()
    if text.isprintable():
        assert written.count(text) > 40


@pytest.mark.parametrize("text", ["[/x]", "[link=https://example.org]x[/link]", ":skull:", "\x1b[2J", "\x9b2J"])
def test_on_a_console_of_richs_own_it_would_have_failed(text):
    """So that the test above cannot pass for want of a hostile text."""
    out, shown = io.StringIO(), io.StringIO()
    with contextlib.suppress(MarkupError):
        Console(file=out, width=400).print(f"{text} is here")
    Screen(file=shown, width=400).print(f"{text} is here")
    assert out.getvalue() != shown.getvalue()


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield getattr(function, "attr", getattr(function, "id", "")), node


def test_nothing_goes_to_a_terminal_but_through_the_screen():
    """Every console is a `Screen`, every moving column is told to read no markup, and none of our texts has any."""
    tags = re.compile(r"\[/?(?:bold|dim|italic|red|green|yellow|blue|link)[^\]]*\]|\[/\]")
    found = []
    for file in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        where = file.relative_to(SOURCES)
        for name, call in calls(tree):
            plain = {keyword.arg: keyword.value for keyword in call.keywords}
            if name in ("Console", "from_markup", "render_markup") or (
                name == "TextColumn" and not ("markup" in plain and plain["markup"].value is False)
            ):
                found.append(f"{where}:{call.lineno}: {name}")
            if name == "print" and "markup" in plain:
                found.append(f"{where}:{call.lineno}: print(markup=...)")
        found += [
            f"{where}:{node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and tags.search(node.value)
        ]
    assert found == []

"""The catalog: names, the cache, what goes wrong; and, marked embedded, the real sets."""

import ast
import gzip
import hashlib
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from fedsrd.data import catalog
from fedsrd.data.examples import TELLING, Example, normalised
from fedsrd.data.sources import bank, hpo, math_worked
from fedsrd.errors import DataError
from fedsrd.packages import Wheel


@pytest.fixture
def own_set(tmp_path, monkeypatch):
    """A specialist's set of our own in the catalog, an empty cache, and a list that grows with every parse."""
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path))
    monkeypatch.setattr(Wheel, "fetch", lambda *_: pytest.fail("a wheel was opened"))
    parsed = []

    def read(_):
        parsed.append(1)
        # Characters that some line readers take for the end of a line.
        return [Example(f"question {i}\u2028\x85\x0c\r", f"answer {i}\n\x1e", f"group {i % 40}") for i in range(400)]

    entry = replace(catalog.get("finance"), name="own", version="7", read=read)
    monkeypatch.setitem(catalog._SETS, "own", entry)
    return parsed


def test_names_and_facts():
    specialists = ["code", "medical", "finance", "math", *(f"findings-{clinic}" for clinic in hpo.CLINICS)]
    assert catalog.names() == [*specialists, "humaneval", "medmcqa", "champ", "logiqa", "tort-law"]
    for name in catalog.names():
        entry = catalog.get(name)
        assert entry.name == name
        assert (entry.role == "specialist") == (name in specialists)
        assert all((entry.licence, entry.citation, entry.source, entry.version, entry.note))
    assert catalog.get("code").version == ".".join(map(str, sys.version_info[:3]))
    assert "fictional" in catalog.get("finance").note


def test_unknown_sets_and_training_on_benchmarks():
    with pytest.raises(DataError, match=r"Did you mean embedded:medical\? Known: code, medical"):
        catalog.get("medicall")
    with pytest.raises(DataError, match=r"no such data set\. Known: code"):
        catalog.load("zzz", "test")
    for name in ("humaneval", "medmcqa", "champ", "logiqa", "tort-law"):
        with pytest.raises(DataError, match=f"embedded:{name} is for evaluation only"):
            catalog.load(name, "train")
    with pytest.raises(DataError, match="has splits 'train' and 'test', not 'validation'"):
        catalog.load("code", "validation")


def test_a_set_is_parsed_once_and_read_from_the_cache_after(tmp_path, own_set):
    train, test = catalog.load("own", "train"), catalog.load("own", "test")
    assert len(train) + len(test) == 400
    assert train[0].instruction.endswith("\u2028\x85\x0c\r")
    assert (catalog.load("own", "train"), catalog.load("own", "test")) == (train, test)
    assert len(own_set) == 1
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["data/own-7-v1/test.jsonl", "data/own-7-v1/train.jsonl"]


def test_another_version_or_parser_never_reads_old_files(monkeypatch, own_set):
    catalog.load("own", "train")
    monkeypatch.setattr(catalog, "_PARSER", "v2")
    catalog.load("own", "train")
    monkeypatch.setitem(catalog._SETS, "own", replace(catalog.get("own"), version="8"))
    catalog.load("own", "train")
    assert len(own_set) == 3


def test_a_file_that_was_deleted_is_made_again(tmp_path, own_set):
    test = catalog.load("own", "test")
    (tmp_path / "data/own-7-v1/test.jsonl").unlink()
    assert catalog.load("own", "test") == test
    assert len(own_set) == 2


def test_two_that_parse_at_once_do_not_disturb_each_other(monkeypatch, own_set):
    entry = catalog.get("own")

    def slow(say):
        # While this one reads its source, another one finishes.
        monkeypatch.setitem(catalog._SETS, "own", entry)
        other.extend(catalog.load("own", "train"))
        return entry.read(say)

    other: list[Example] = []
    monkeypatch.setitem(catalog._SETS, "own", replace(entry, read=slow))
    assert catalog.load("own", "train") == other


@pytest.mark.parametrize("text", ['{"instruction": "cut', '["a list"]\n', '{"question": "not ours"}\n', "1\n"])
def test_a_spoilt_cache_is_named_and_its_text_is_not_shown(tmp_path, own_set, text):
    catalog.load("own", "train")
    (tmp_path / "data/own-7-v1/train.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.jsonl is not as fedsrd wrote it; delete it"):
        catalog.load("own", "train")


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, own_set):
    (tmp_path / "data").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be written: .*; name another folder in \$FEDSRD_CACHE"):
        catalog.load("own", "train")


def test_describe_has_a_row_a_set(monkeypatch, own_set):
    monkeypatch.setattr(catalog, "_SETS", {"own": catalog.get("own")})
    (row,) = catalog.describe()
    assert row["train"] + row["test"] == 400
    assert row["test"] == len(catalog.load("own", "test")) > 0
    assert row["licence"] == "MIT"
    json.dumps(row)


def test_the_import_is_light():
    heavy = "{'torch', 'pandas', 'transformers', 'datasets', 'peft'}"
    program = f"import sys, fedsrd.data.catalog; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def fingerprint(name):
    parts = ("train", "test") if catalog.get(name).role == "specialist" else ("test",)
    text = "".join(
        json.dumps(catalog._kept(e), ensure_ascii=False) + "\n" for part in parts for e in catalog.load(name, part)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ADVICE = "other examples than those that results were measured on: count catalog._PARSER up and say so in the changelog"


def test_the_generated_set_is_the_one_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path))
    assert fingerprint("math") == "2245c8bbf220efe9", ADVICE
    assert len({e.instruction for e in math_worked.load(lambda _: None)}) == 4400


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("name", "train", "test", "digest"),
    [
        # The standard library differs between Pythons: no digest, and room in its counts.
        ("code", 3000, 300, None),
        ("medical", 14745, 1704, "23216d6c9d884bee"),
        ("finance", 2516, 376, "2b9ec9310d55dc85"),
        ("math", 3740, 660, "2245c8bbf220efe9"),
        ("humaneval", 0, 164, "1e06fae5525fe4bb"),
        ("medmcqa", 0, 300, "3a8dc62aed758f92"),
        ("champ", 0, 270, "8de21a4ebf207f21"),
        ("logiqa", 0, 677, "c0de62a247e23921"),
        ("tort-law", 0, 340, "8cbd6f48cbc3658b"),
    ],
)
def test_the_real_sets_have_their_size_and_disjoint_parts(name, train, test, digest):
    held_out = catalog.load(name, "test")
    learnt = catalog.load(name, "train") if train else []
    if digest:
        assert (len(learnt), len(held_out)) == (train, test)
        assert fingerprint(name) == digest, ADVICE
    else:
        assert len(learnt) >= train
        assert len(held_out) >= test
    assert all(e.instruction.strip() and len(e.response.strip()) >= 3 for e in learnt + held_out)
    assert not {normalised(e.instruction) for e in learnt} & {normalised(e.instruction) for e in held_out}
    assert not {e.group for e in learnt if e.group} & {e.group for e in held_out if e.group}
    telling = {normalised(e.response) for e in learnt if len(e.response) > TELLING}
    assert not telling & {normalised(e.response) for e in held_out}


@pytest.mark.embedded
def test_the_wheels_hold_what_the_code_says_of_them():
    obo = hpo.WHEEL.read(hpo._MEMBER).decode("utf-8")
    assert hpo.version(obo) == hpo.VERSION
    assert len(hpo.terms(obo)) == 16449
    assert len(bank.sections(gzip.decompress(bank.WHEEL.read(bank._MEMBER)))) == 2893


@pytest.mark.embedded
def test_code_responses_parse_and_open_with_no_docstring():
    for example in catalog.load("code", "train") + catalog.load("code", "test"):
        tree = ast.parse("async def f():\n" + textwrap.indent(example.response, "    "))
        assert ast.get_docstring(tree.body[0]) is None


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["medmcqa", "logiqa", "tort-law"])
def test_the_response_to_a_multiple_choice_is_one_of_its_options(name):
    for example in catalog.load(name, "test"):
        # LogiQA writes the letter of an option twice.
        shown = re.sub(r"^([A-E]\.)\s*(?:\1)?\s*", r"\1 ", example.instruction, flags=re.MULTILINE)
        assert example.response in shown
        assert re.match(r"[A-E]\. \S|[a-e]\) \S", example.response)

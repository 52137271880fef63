"""Data that could be misread without a word: every row that does not fit is an error with file and line."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.data.examples import Example
from fedsrd.data.local import check_local, load_local
from fedsrd.errors import DataError

GOOD = b'{"instruction": "a", "response": "b"}\n'
HEAD = b"instruction,response\n"


def load(source, columns=None, template=None, **options):
    return load_local(str(source), columns=columns or {}, template=template, **options)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + b"a,b\nc,d,e\n", "line 3 has 3 fields, the header has 2"),
        (HEAD + b"a,b\n\nc\n", "line 4 has 1 fields, the header has 2"),
        # pandas takes the first column of rows that are all longer by one for an index: everything one to the left.
        (HEAD + b"1,a,b\n2,c,d\n", "line 2 has 3 fields"),
        (HEAD + b'"two\nlines",b\nc;d\n', "line 4 has 1 fields"),
        (b"instruction,response,response\na,b,c\n", "two columns called 'response'"),
        (b"instruction;response\na;b\n", "no column 'instruction'.*; it has instruction;response"),
        (HEAD + b"a,\0b\n", "line 2 has a NUL byte"),
        (HEAD.decode().encode("utf-16"), "not UTF-8: line 1"),
        (HEAD + b'a,"b\nc,d\ne,f\n', "line 2: a quotation mark is opened in this row and never closed"),
        (HEAD + b'a,"b" c\n', "line 2: not CSV"),
        (b"instruction,response\ra,b\r", "carriage return"),
        (b"\n \n", "no column 'instruction'"),
        (b"\n\n", "has no examples"),
    ],
)
def test_csv_rows_that_do_not_fit(tmp_path, content, message):
    path = write(tmp_path / "a.csv", content)
    for use in (lambda: load(path), lambda: check_local(str(path), columns={}, template=None)):
        with pytest.raises(DataError, match=message) as caught:
            use()
        assert str(path) in str(caught.value)


def test_csv_text_is_taken_as_it_is(tmp_path):
    rows = 'id,instruction,response,\r\n1,NA,007,\r\n\r\n2,null,1e5,\r\n3,"a, ""b""\r\nc", x,\r\n'
    path = write(tmp_path / "a.CSV", b"\xef\xbb\xbf" + rows.encode())
    assert load(path) == [Example("NA", "007"), Example("null", "1e5"), Example('a, "b"\r\nc', " x")]
    long = "x" * 200_000
    assert load(write(tmp_path / "b.csv", HEAD + f"a,{long}\n".encode())) == [Example("a", long)]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
TABLE = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


@given(TABLE)
def test_what_was_written_is_what_is_read(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("written")
    stream = io.StringIO()
    csv.writer(stream).writerows([("instruction", "response"), *table])
    rows = [{"instruction": one, "response": other} for one, other in table]
    expected = [Example(one, other) for one, other in table]
    assert load(write(folder / "a.csv", stream.getvalue().encode())) == expected
    for ascii_only in (True, False):
        lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        assert load(write(folder / "a.jsonl", lines.encode())) == expected
        for text in (lines, json.dumps(rows, indent=1, ensure_ascii=ascii_only), json.dumps(rows)):
            assert load(write(folder / "a.json", text.encode())) == expected


@given(TABLE, st.integers(0, 4), st.integers(-1, 3).filter(bool))
def test_a_row_of_another_width_is_found(tmp_path_factory, table, place, more):
    rows = [list(row) for row in table]
    place %= len(rows)
    rows[place] = rows[place][:1] if more < 0 else [*rows[place], *["x"] * more]
    stream = io.StringIO()
    csv.writer(stream).writerows([("instruction", "response"), *rows[:place]])
    at = len(stream.getvalue().split("\n"))
    csv.writer(stream).writerows(rows[place:])
    path = write(tmp_path_factory.mktemp("other") / "a.csv", stream.getvalue().encode())
    with pytest.raises(DataError, match=f"a.csv: line {at} has {2 + more} fields"):
        load(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"instruction": "a"}', "line 2 has no column 'response'"),
        (b'{"instruction": "a", "reponse": "b"}', r"line 2 has no column 'response' \(did you mean 'reponse'\?\)"),
        (b'{"instruction": ["a"], "response": "b"}', "line 2: 'instruction' is a list; expected text"),
        (b'{"instruction": {"x": "a"}, "response": "b"}', "line 2: 'instruction' is an object; expected text"),
        (b'{"instruction": "a", "response": null}', "line 2: 'response' is null; expected text"),
        (b'{"instruction": "a", "response": 5.0}', "line 2: 'response' is a number; expected text"),
        (b'{"instruction": "a", "response": true}', "line 2: 'response' is true or false; expected text"),
        (b'{"instruction": "a", "input": 5, "response": "b"}', "line 2: 'input' is a number; expected text"),
        (b'{"instruction": "\\ud800", "response": "b"}', "line 2: 'instruction' has half a character"),
        (b'{"instruction": "a", "response": "b", "response": "c"}', "one key twice"),
        (b'{"instruction": "a", "response": "b", "x": NaN}', "NaN is no JSON"),
        (b'{"instruction": "a", "response": "b", "x": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b'{"instruction": "a", "response": "b", "x": ' + b"[" * 100_000 + b"}", "too deeply nested"),
        (b'{"instruction": "a" "response": "b"}', "line 2 is not JSON"),
        (b'{"instruction": "a", "response": "\0"}', "line 2 has a NUL byte"),
        (b'"text"', "line 2 is not a JSON object"),
        (b"5", "line 2 is not a JSON object"),
        (b"null", "line 2 is not a JSON object"),
    ],
)
def test_json_rows_that_do_not_fit(tmp_path, name, row, message):
    path = write(tmp_path / name, GOOD + row + b"\n" + GOOD)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" + GOOD + GOOD + b"]", "line 1; is the file whole"),
        (b"[" + GOOD + b"," + GOOD, "line 2; is the file whole"),
        (b"[\n\n" + GOOD + b",\n{}]", "line 5 has no column 'instruction'"),
        (b"[" + GOOD + b"]\n" + GOOD, "line 2: something follows the list"),
        (b"[[" + GOOD + b"]]", "line 1 is not a JSON object"),
        (b'{"instruction": ["a"], "response": ["b"]}', "'response' is a list"),
        (b"[]", "has no examples"),
        (b" \n", "has no examples"),
    ],
)
def test_json_files_that_are_no_list_of_rows(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.json", content))


def test_a_files_name_is_no_pattern(tmp_path):
    write(tmp_path / "ab.jsonl", GOOD.replace(b'"b"', b'"another"'))
    for name in ("a*.jsonl", "[a].jsonl", "a?.jsonl", "{a,b}.jsonl", "**.jsonl", "a%20b.jsonl", "x::y.jsonl"):
        assert load(write(tmp_path / name, GOOD)) == [Example("a", "b")]
    write(tmp_path / "[/srv]*" / "a.jsonl", GOOD)
    assert load(tmp_path / "[/srv]*") == load(tmp_path / "[/srv]*" / "a.jsonl") == [Example("a", "b")]
    for name in ("*.jsonl", "[b]*.jsonl"):
        with pytest.raises(DataError, match="no such file or folder"):
            load(tmp_path / name)


def test_nor_is_that_of_a_benchmarks_questions(tmp_path):
    from datasets import load_dataset

    from fedsrd.evaluation.local_files import parse

    write(tmp_path / "ab.jsonl", b'{"question": "another", "answer": "a"}\n')
    for name in ("a*.jsonl", "[a].jsonl"):
        path = write(tmp_path / name, b'{"question": "q", "answer": "a"}\n')
        (files,) = parse([f"gsm8k={path}"]).values()
        given = files.override()
        rows = load_dataset(given["dataset_path"], **given["dataset_kwargs"], split="test", streaming=True)
        assert [row["question"] for row in rows] == ["q"]


def test_a_folder_is_read_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "data"
    for name in ("b.jsonl", "a.jsonl"):
        write(folder / name, GOOD.replace(b'"a"', f'"{name}"'.encode()))
    for name in (".hidden.jsonl", "._a.jsonl", "README.md", "LICENSE", ".git/config"):
        write(folder / name, b"no data")
    assert [example.instruction for example in load(folder)] == ["a.jsonl", "b.jsonl"]
    for name, message in (
        ("c.jsonl.gz", "c.jsonl.gz: cannot be read, and would be left out; .*unpack it first"),
        ("c.tsv", "c.tsv: cannot be read"),
        ("c.csv", "expected files of one kind .*; found .csv, .jsonl"),
        ("more/c.jsonl", "more is a folder in a folder of data"),
        ("c.jsonl", "c.jsonl is empty"),
    ):
        path = write(folder / name, b"")
        with pytest.raises(DataError, match=message):
            load(folder)
        path.unlink()
        if path.parent != folder:
            path.parent.rmdir()
    write(folder / "c.jsonl", GOOD + b"{}")
    with pytest.raises(DataError, match="c.jsonl: line 2 has no column"):
        load(folder)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        load(tmp_path / "pipe.jsonl")
    for source in ("x" * 5000, "~nobody-of-this-name/a.jsonl", f"{'x' * 300}.jsonl"):
        with pytest.raises(DataError, match="no usable path"):
            load(source)
    with pytest.raises(DataError, match="no such file"):
        load("a\0b.jsonl")


def test_parquet_with_other_columns_or_damage(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def wrote(name, *columns):
        arrays = [pyarrow.array(values) for _, values in columns]
        parquet.write_table(pyarrow.table(arrays, [name for name, _ in columns]), tmp_path / name)
        return tmp_path / name

    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    good = wrote("a.parquet", ("x.y", ["a"]), ("response", ["b"]), ("chat", turns), ("big", [b"\xff"]))
    assert load(good, {"instruction": "x.y"}) == [Example("a", "b")]
    assert load(good, {"messages": "chat"}) == [Example("hi", "ho")]
    for name, columns, message in (
        ("b.parquet", [("instruction", ["a"])], "b.parquet has no column 'response'"),
        ("c.parquet", [("instruction", ["a"]), ("response", [5])], "row 1: 'response' is a number"),
        ("d.parquet", [("instruction", ["a", "b"]), ("response", ["c", None])], "row 2: 'response' is null"),
        ("e.parquet", [("instruction", ["a"]), ("response", ["b"]), ("response", ["c"])], "two columns called"),
        ("f.parquet", [("instruction", [b"a"]), ("response", ["b"])], "'instruction' is of type bytes"),
    ):
        with pytest.raises(DataError, match=message):
            load(wrote(name, *columns))
    content = bytearray(good.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = bytes(40)
    good.write_bytes(content)
    with pytest.raises(DataError, match="a.parquet"):
        load(good, {"messages": "chat"})


@pytest.mark.parametrize(
    "template",
    [
        "{instruction.__class__.__init__.__globals__}",
        "{instruction[0]}",
        "{instruction!r}",
        "{instruction:>1000000000}",
        "{instruction:{response}}",
        "{}",
        "{0}",
        "no column",
        "{instruction",
        "}",
    ],
)
@pytest.mark.parametrize("source", ["a.jsonl", "someone/dataset"])
def test_templates_are_column_names_in_braces(tmp_path, monkeypatch, template, source):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", GOOD)
    for use in (load_local, check_local):
        with pytest.raises(DataError, match="template"):
            use(source, columns={}, template=template)


def test_a_template_is_filled_and_nothing_else(tmp_path):
    row = {"q": "{response} {{q}}", "n": 3, "o": ["x", "y"], "none": None, "response": "b"}
    path = write(tmp_path / "a.jsonl", json.dumps(row).encode())
    assert load(path, template="{{{q}}} {n}{none} {o}") == [Example("{{response} {{q}}} 3 ['x', 'y']", "b")]
    with pytest.raises(DataError, match="'the filled template' is blank"):
        load(path, template="{none}")


@pytest.mark.parametrize(
    ("columns", "template"),
    [
        ({"messages": "m", "response": "r"}, None),
        ({"messages": "m"}, "{q}"),
        ({"instruction": "q"}, "{q}"),
        ({"input": "q"}, "{q}"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(columns, template):
    with pytest.raises(DataError, match="leave other columns and the template out|name the column in the template"):
        check_local("someone/dataset", columns=columns, template=template)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("text", "'m' is text"),
        ([], "no turn of an assistant"),
        (["hi"], "turn 0, is text"),
        ([{"role": "user", "content": "hi"}], "no turn of an assistant"),
        ([{"content": "hi"}, {"content": "a"}, {"role": "assistant", "content": "ho"}], "'m.0.role' is null"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], "'m.1.content' is null"),
    ],
)
def test_conversations_that_do_not_fit(tmp_path, turns, message):
    path = write(tmp_path / "a.jsonl", json.dumps({"m": turns}).encode())
    with pytest.raises(DataError, match=message):
        load(path, {"messages": "m"})


def test_a_saved_folder_that_is_damaged(tmp_path):
    from datasets import Dataset

    table = Dataset.from_dict({"instruction": ["a"], "response": ["b"], "n": [1]})
    table.with_format("numpy").save_to_disk(tmp_path / "good")
    assert load(tmp_path / "good") == [Example("a", "b")]
    for content in (b"", b"[]", b'{"_data_files": 5}', b'{"_data_files": [{"filename": "none.arrow"}]}'):
        write(tmp_path / "good" / "state.json", content)
        with pytest.raises(DataError, match="not a readable save_to_disk folder"):
            load(tmp_path / "good")


PROGRAM = """
import sys
from fedsrd.data import local, readers
read = readers.read_file
def slow(*arguments):
    for number, row in enumerate(read(*arguments)):
        if number == 1:
            print("reading", flush=True)
            sys.stdin.read()
        yield row
local.read_file = slow
local.load_local(sys.argv[1], columns={}, template=None)
"""


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_who_is_killed_while_loading_leaves_no_copy(tmp_path, kind):
    from datasets import Dataset

    table = Dataset.from_dict({"instruction": ["PRIVATE one"] * 3, "response": ["PRIVATE two"] * 3})
    data, home = tmp_path / f"a.{kind}", tmp_path / "home"
    getattr(table, "to_json" if kind.startswith("json") else f"to_{kind}")(data)
    home.mkdir()
    variables = ("TMPDIR", "HOME", "HF_HOME", "FEDSRD_CACHE", "XDG_CACHE_HOME")
    environment = {**os.environ, **dict.fromkeys(variables, str(home))}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"reading\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [path for path in home.rglob("*") if path.is_file()]
    assert not any(b"PRIVATE" in path.read_bytes() for path in left), left
    assert not list(home.rglob("*.arrow"))

"""The user's own data: what loads, and one clear message for what does not. Messages never quote contents."""

import json

import pytest

from fedsrd.data.examples import Example
from fedsrd.data.local import check_local, load_local
from fedsrd.errors import DataError

ROWS = [{"instruction": f"ask {i}", "response": f"say {i}", "extra": "x"} for i in range(3)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSRD_CACHE", str(tmp_path / "cache"))


def load(source, columns=None, template=None, **options):
    return load_local(str(source), columns=columns or {}, template=template, **options)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "folder"])
def test_every_kind_of_source(tmp_path, kind):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    data = Dataset.from_list(ROWS)
    path = tmp_path / f"data.{kind}"
    if kind == "saved":
        data.save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        jsonl(path / "a.jsonl", ROWS[:1])
        jsonl(path / "b.jsonl", ROWS[1:])
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        jsonl(path, ROWS)
    else:
        getattr(data, f"to_{kind}")(path)
    assert load(path) == [Example(f"ask {i}", f"say {i}") for i in range(3)]
    assert check_local(str(path), columns={}, template=None) == 3
    assert load(path, limit=2) == load(path)[:2]


def test_columns_templates_inputs_and_messages(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "why", "c": "context", "a": "because"}])
    assert load(path, {"instruction": "q", "response": "a"}) == [Example("why", "because")]
    assert load(path, {"instruction": "q", "input": "c", "response": "a"}) == [Example("why\n\ncontext", "because")]
    assert load(path, {"response": "a"}, "{c}: {q}?") == [Example("context: why?", "because")]
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "ciao"},
    ]
    path = jsonl(tmp_path / "m.jsonl", [{"chat": turns[:2]}, {"chat": turns}])
    short, first, second = load(path, {"messages": "chat"})
    assert short == first == Example("hi", "hello")
    before = (("user", "hi"), ("assistant", "hello"), ("user", "bye"))
    assert second == Example("user: hi\n\nassistant: hello\n\nuser: bye", "ciao", turns=before)


def test_conversations_are_recognised_in_both_ways_of_writing_them(tmp_path):
    from datasets import Dataset

    openai = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    openai += [{"role": "assistant", "content": "hello"}]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in openai]
    wanted = Example("system: be kind\n\nuser: hi", "hello", turns=(("system", "be kind"), ("user", "hi")))
    assert load(jsonl(tmp_path / "o.jsonl", [{"messages": openai, "id": 3}])) == [wanted]
    assert load(jsonl(tmp_path / "s.jsonl", [{"conversations": sharegpt}])) == [wanted]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": sharegpt}]), encoding="utf-8")
    assert load(tmp_path / "s.json") == [wanted]
    Dataset.from_list([{"messages": openai}]).to_parquet(tmp_path / "p.parquet")
    assert load(tmp_path / "p.parquet") == [wanted]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    (found,) = load(jsonl(tmp_path / "t.jsonl", [{"messages": openai, "tools": tools}]))
    assert found.tools == tuple(tools)
    # An instruction beside it decides; two kinds of conversations are not guessed between.
    path = jsonl(tmp_path / "both.jsonl", [{"messages": openai, "instruction": "a", "response": "b"}])
    assert load(path) == [Example("a", "b")]
    with pytest.raises(DataError, match="no column 'instruction'"):
        load(jsonl(tmp_path / "two.jsonl", [{"messages": openai, "conversations": sharegpt}]))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user", "content": "SECRET"}], "no turn of an assistant that answers another"),
        ([{"role": "assistant", "content": "SECRET"}], "no turn of an assistant that answers another"),
        ([{"role": "SECRET", "content": "a"}, {"role": "assistant", "content": "b"}], "is no role that is known"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"SECRET": 1}]}],
            r"messages.1 calls tools",
        ),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "'messages.1.content' is null"),
        ([{"from": "human"}, {"from": "gpt", "value": "b"}], "'messages.0.value' is null"),
        ("SECRET", "expected a list of turns"),
    ],
)
def test_what_is_no_conversation_is_told_without_its_contents(tmp_path, turns, message):
    with pytest.raises(DataError, match=message) as caught:
        load(jsonl(tmp_path / "m.jsonl", [{"messages": turns}]))
    assert "SECRET" not in str(caught.value)


def test_a_split_of_files_is_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "a", "response": "b"}])
    for source in (path, tmp_path):
        with pytest.raises(DataError, match=r"split = 'test': .* has no splits"):
            load_local(str(source), split="test", columns={}, template=None)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "columns", "template", "message"),
    [
        ("a.jsonl", b"", {}, None, "is empty"),
        ("a.jsonl", b'{"instruction": "a", "response": "b"}\n\xff\xfe\n', {}, None, "not UTF-8: line 2, byte 1"),
        ("a.jsonl", b'{"instruction": "a", "response": "b"}\n{"x": \n', {}, None, "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]\n", {}, None, "line 1 is not a JSON object"),
        ("a.csv", b"instruction,reponse\na,b\n", {}, None, r"no column 'response' \(did you mean 'reponse'\?\)"),
        ("a.csv", b"instruction,response\n", {}, None, "has no examples"),
        ("a.csv", b"q,response\na,b\n", {}, "{question}", "no column 'question'.*; it has q, response"),
        ("a.csv", b"q,response\na,b\n", {}, "{q", "template"),
        ("a.csv", b"q,response\na,b\n", {}, "no column", "expected column names in braces"),
        ("a.csv", b"q,response\na,b\n", {"answer": "q"}, None, "columns.answer: expected one of instruction"),
        (
            "a.jsonl",
            b'{"instruction": "a", "response": " "}\n' * 7,
            {},
            None,
            r"line 1: 'response' is blank; .* 7 rows do not fit \(lines 1, 2, 3, 4, 5, \.\.\.\)",
        ),
        (
            "a.jsonl",
            b'{"instruction": "a", "response": null}\n',
            {},
            None,
            "line 1: 'response' is null; expected",
        ),
        (
            "a.jsonl",
            b'{"instruction": "a", "response": 5}\n',
            {},
            None,
            "line 1: 'response' is a number",
        ),
        ("a.txt", b"hello", {}, None, "expected a file ending in .jsonl, .json, .parquet, .csv"),
        ("a.parquet", b"not parquet", {}, None, "cannot be loaded"),
        ("a.json", b"{", {}, None, "line 1 is not JSON"),
    ],
)
def test_bad_files_give_one_clear_message(tmp_path, name, content, columns, template, message):
    path = write(tmp_path / name, content)
    for use in (
        lambda: load(path, columns, template),
        lambda: check_local(str(path), columns=columns, template=template),
    ):
        with pytest.raises(DataError, match=message) as caught:
            use()
        assert "Traceback" not in str(caught.value)


def test_missing_files_splits_and_hubs(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "none.jsonl")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load(tmp_path / "saved", split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected files of one kind .*; found none"):
        load(tmp_path / "empty")
    assert check_local("someone/dataset", columns={}, template=None) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="data set 'someone/dataset' cannot be loaded: .*or name a local file"):
        load("someone/dataset")


def test_a_hub_id_goes_to_datasets_with_its_config_and_split(monkeypatch):
    import datasets

    asked = {}

    def fake(name, config, **options):
        asked.update(name=name, config=config, **options)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert len(load("org/name:main", split="validation")) == 3
    assert asked == {"name": "org/name", "config": "main", "split": "validation"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"instruction": "SECRET", "response": ""}'),
        ("a.jsonl", '{"instruction": SECRET}'),
        ("a.jsonl", '{"instruction": "SECRET", "response": "SECRET", "x": 1SECRET}'),
        ("a.json", '[{"instruction": "SECRET"'),
        ("a.csv", "instruction,response\nSECRET,SECRET,SECRET\n"),
        ("a.csv", 'instruction,response\n"SECRET" SECRET,SECRET\n'),
        ("a.csv", "What is wrong with Mr SECRET?,He has a fever.\n"),
    ],
)
def test_private_contents_never_stand_in_messages(tmp_path, name, content):
    path = write(tmp_path / name, content.encode())
    with pytest.raises(DataError) as caught:
        load(path)
    assert "SECRET" not in str(caught.value)

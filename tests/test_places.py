"""Which names are public, and texts that lose the folders of every path in them."""

import string

import pytest
from hub import cached
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.places import LABELS, is_public, shown, without_folders


def test_only_what_was_loaded_from_the_hub_is_public(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached(monkeypatch, tmp_path / "hub", "datasets--openai--gsm8k", "datasets--data--ward", "models--gpt2")
    for name in ("embedded:code", "openai/gsm8k", "openai/gsm8k:main"):
        assert is_public(name, "dataset")
        assert shown(name, "dataset") == name
    assert is_public("gpt2", "model")
    # The cache of data sets says nothing about models.
    assert not is_public("openai/gsm8k", "model")
    assert is_public("data/ward", "dataset")
    (tmp_path / "data" / "ward").mkdir(parents=True)
    assert not is_public("data/ward", "dataset")
    assert is_public("ours/model", "model", {"ours/model"})
    assert not is_public("../model", "model", {"../model"})


DOUBTFUL = (
    *("data/ward", "ward", "ward-a.jsonl", "org/data.CSV", "~/ward", "~ann", "./ward", "../ward", "/srv/ward", "a/b/c"),
    *(r"C:\data\ward", "C:ward", r"\\host\ward", r"data\ward", "file:///srv/ward", "embedded:../x"),
    *("", ".", "a" * 9999, "a\0b", "a/b\n", "https://hospital.example/ward", "hf://datasets/a/b"),
)


@pytest.mark.parametrize("name", DOUBTFUL)
def test_whatever_is_in_doubt_is_private(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cached(monkeypatch, tmp_path / "hub")
    for kind in ("model", "dataset"):
        assert shown(name, kind) == LABELS[kind]


PART = st.text(string.ascii_letters + string.digits + "._-äß", min_size=1).filter(lambda part: part.strip("."))
ROOTS = st.sampled_from(["/", "~/", "~ann/", "./", "../", "../../", "C:\\", "\\\\host\\", "file:///"])
AROUND = st.sampled_from(["", " ", ": ", " '", "(", "=", '"', "\n", "=["])


@given(ROOTS, st.lists(PART, min_size=1, max_size=5), AROUND, st.sampled_from(["", ": line 3", "'", "; mend it", ","]))
def test_of_every_path_its_last_part_stays(root, parts, before, after):
    separator = "\\" if "\\" in root else "/"
    path = root + separator.join(parts)
    found = without_folders(f"client{before}{path}{after}" if before else path + after)
    assert found == (f"client{before}{parts[-1]}{after}" if before else parts[-1] + after)


@pytest.mark.parametrize(
    "text", ["org/name", "1/2 of them", "and/or", "up / down", "https://huggingface.co/org/name", "a -> b", "</b>", "/"]
)
def test_what_is_no_path_stays(text):
    assert without_folders(text) == text


def test_known_paths_go_whatever_they_look_like(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann lee")
    assert without_folders("c: ward 3/notes, a/notes is empty", ["ward 3/notes, a/notes"]) == "c: notes is empty"
    assert without_folders("/home/ann lee/my x/a.csv: bad", ["~/my x/a.csv"]) == "a.csv: bad"
    assert without_folders("wards/3/left.jsonl: bad") == "left.jsonl: bad"
    assert without_folders("a name is a name", ["name", ""]) == "a name is a name"

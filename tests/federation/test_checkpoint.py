"""The file that everything continues from: what is written is read, and any damage is found."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.core.tensors import GlobalState
from fedsrd.errors import RunFolderError
from fedsrd.federation.checkpoint import FORMAT, Checkpoint
from fedsrd.federation.messages import Broadcast

WHOLE = Checkpoint(
    GlobalState(
        {"q.lora_B.weight": torch.arange(6.0).reshape(3, 2), "q.lora_A.weight": torch.ones(2, 3)},
        {"q": torch.full((3, 3), 0.5)},
        4,
    ),
    {"momentum": torch.tensor([1.5, -2.0], dtype=torch.float64), "step": torch.tensor(3)},
    {"ward": {"residual": torch.tensor([0.25, 0.0, 1.0])}, "lab": {"mask": torch.tensor([True, False])}},
    (Broadcast(4, 4, b"\x01\x02\x03", "ab" * 32, 2),),
    {"ward": 4, "lab": -1},
    {"ward": 4, "lab": 3},
    "0123456789abcdef",
    "cd" * 32,
    '{"round": 0}\n{"round": 1, "name": "caf\u00e9"}\n',
)
BYTES = WHOLE.to_bytes()


def read(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state"
        file.write_bytes(content)
        return Checkpoint.load(file, "nothing goes on")


def meaning(checkpoint):
    """All of it, comparable; the bytes of a file are not, as safetensors orders metadata at random."""
    tensors = {key: (t.dtype, t.shape, t.reshape(-1).tolist()) for key, t in checkpoint.tensors().items()}
    return checkpoint.notes(), tensors


def headed(content, change):
    """The file with another header."""
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + length])
    change(tree)
    raw = json.dumps(tree).encode()
    return len(raw).to_bytes(8, "little") + raw + content[8 + length :]


def test_what_is_written_is_read():
    found = read(BYTES)
    assert meaning(found) == meaning(WHOLE)
    assert found.state.version == 4
    assert found.clients["lab"]["mask"].tolist() == [True, False]
    assert found.server["step"].item() == 3
    assert found.missed == WHOLE.missed
    for name in ("known", "counted", "federation", "recipe", "records"):
        assert getattr(found, name) == getattr(WHOLE, name)
    assert read(Checkpoint(GlobalState({}, {}, -1)).to_bytes()).records == ""


@given(place=st.integers(0, 8 * len(BYTES) - 1))
def test_one_flipped_bit_anywhere_is_found(place):
    damaged = bytearray(BYTES)
    damaged[place // 8] ^= 1 << place % 8
    try:
        found = read(bytes(damaged))
    except RunFolderError:
        return
    # JSON writes some characters in two ways; then nothing is lost.
    assert meaning(found) == meaning(WHOLE)


@given(place=st.integers(0, len(BYTES) - 1), content=st.binary(min_size=1, max_size=20))
def test_overwritten_bytes_are_found(place, content):
    damaged = BYTES[:place] + content + BYTES[place + len(content) :]
    try:
        found = read(damaged)
    except RunFolderError:
        return
    assert meaning(found) == meaning(WHOLE)


@given(length=st.integers(0, len(BYTES) - 1), more=st.binary(min_size=1, max_size=9))
def test_a_file_that_is_cut_short_or_goes_on_is_found(length, more):
    for content in (BYTES[:length], BYTES + more):
        with pytest.raises(RunFolderError, match="nothing goes on"):
            read(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda notes: notes.update(version=3),
        lambda notes: notes.update(known={"ward": 3, "lab": -1}),
        lambda notes: notes.update(counted={}),
        lambda notes: notes.update(federation="0" * 16),
        lambda notes: notes.update(recipe="00" * 32),
        lambda notes: notes.update(missed=[]),
        lambda notes: notes.pop("known"),
    ],
)
def test_notes_of_another_meaning_are_found(change):
    def meddle(tree):
        notes = json.loads(tree["__metadata__"]["notes"])
        change(notes)
        tree["__metadata__"]["notes"] = json.dumps(notes)

    with pytest.raises(RunFolderError, match="its checksum is not that of its content"):
        read(headed(BYTES, meddle))


@pytest.mark.parametrize("notes", ["", "{", "[]", "null", "{}", '{"version": "4"}', "[" * 100_000, "\ud800"])
def test_notes_that_are_none_are_our_error_even_with_a_checksum(notes, monkeypatch):
    from fedsrd.federation import checkpoint

    monkeypatch.setattr(checkpoint, "_checksum", lambda *_: "same")

    def meddle(tree):
        tree["__metadata__"] |= {"notes": notes, "checksum": "same"}

    with pytest.raises(RunFolderError, match="is damaged, nothing goes on"):
        read(headed(BYTES, meddle))


@pytest.mark.parametrize("key", ["notes", "checksum"])
def test_metadata_that_lack_a_key(key):
    with pytest.raises(RunFolderError, match=f"lacks '{key}'"):
        read(headed(BYTES, lambda tree: tree["__metadata__"].pop(key)))


def test_other_formats_are_refused_by_name():
    with pytest.raises(RunFolderError, match=f"has format 2, nothing goes on: this version of fedsrd reads {FORMAT}"):
        read(headed(BYTES, lambda tree: tree["__metadata__"].update(format="2")))
    with pytest.raises(RunFolderError, match="has format 1, "):
        read(headed(BYTES, lambda tree: tree.pop("__metadata__")))


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunFolderError, match="nothing goes on"):
            Checkpoint.load(path, "nothing goes on")

"""A run that is stopped at any write, and what resuming makes of a folder that is not as the run left it."""

import json
import os
import shutil
import stat

import pytest

from fedsrd import files
from fedsrd import recipe as recipes
from fedsrd.errors import RunFolderError
from fedsrd.federation import local, setup
from fedsrd.federation.resume import restore, tensor_table
from fedsrd.federation.session import Assets
from fedsrd.runs import folder as runfolder
from fedsrd.runs.folder import RunFolder

write = files.write_atomically


class Watch:
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)

    def nothing(self, *_):
        pass

    say = activity = round_done = nothing


@pytest.fixture
def recipe(tiny_recipe):
    """Two rounds of one of three clients, so that the end has something to deliver."""
    first = tiny_recipe["clients"]
    tiny_recipe["clients"] = [{**first[place % 2], "name": f"c{place}"} for place in range(3)]
    tiny_recipe |= {"rounds": 2, "participation": {"fraction": 0.34, "minimum": 1}, "method": {"name": "scaffold"}}
    tiny_recipe["training"] |= {"steps": 1, "accumulation": 1, "max_length": 32}
    tiny_recipe["evaluation"] = {}
    return tiny_recipe


@pytest.fixture(scope="module")
def assets():
    """The model is loaded once."""
    return Assets()


@pytest.fixture
def go(recipe, assets):
    """Runs or resumes."""

    def run(path, *, resume=False, **changes):
        watch = Watch()
        prepared = setup.prepare(
            recipes.parse({**recipe, **changes}), RunFolder(path), resume=resume, observer=watch, assets=assets
        )
        return local.run(prepared, watch, assets=assets, keep_payloads=True), watch

    return run


def left(path):
    """What a run has left, without what differs from one to the next: seconds."""
    found = {}
    for file in sorted(path.rglob("*")):
        content = file.read_bytes() if file.is_file() else None
        if file.name in ("rounds.jsonl", "summary.json"):
            trees = map(json.loads, content.splitlines() if file.suffix == ".jsonl" else [content])
            content = [{key: value for key, value in tree.items() if key != "seconds"} for tree in trees]
        if file.name == "adapter_config.json":
            # The layers' names once PEFT has seen the model, which is lent to all runs here; "all-linear" before.
            content = json.loads(content) | {"target_modules": None}
        # The state holds the records, seconds and all.
        if file.name not in (".lock", "global.safetensors"):
            found[str(file.relative_to(path))] = content
    return found


def test_killed_around_any_write_it_ends_as_if_it_had_not_been(go, tmp_path, monkeypatch):
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "write_atomically", lambda path, content: (written.append(path), write(path, content)))
        calm, _ = go(tmp_path / "calm")
    wanted = left(tmp_path / "calm")
    assert len(written) > 15
    # The state was replaced at the start, after each round and when the clients had been brought to the last version.
    assert [path.name for path in written].count("global.safetensors") == 4
    for number in range(len(written)):
        for when in ("before", "after"):
            out, seen = tmp_path / f"{number}-{when}", []

            def crash(path, content, number=number, when=when, seen=seen):
                seen.append(path)
                last = len(seen) == number + 1
                if last and when == "before":
                    # As SIGKILL leaves it: half a file under a temporary name.
                    path.with_name(".fedsrd-0123.tmp").write_bytes(content[: len(content) // 2])
                    raise KeyboardInterrupt
                write(path, content)
                if last:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(runfolder, "write_atomically", crash)
                with pytest.raises(KeyboardInterrupt):
                    go(out)
            summary, watch = go(out, resume=(out / "recipe.toml").exists())
            assert watch.warned == []
            assert summary.bytes_down == calm.bytes_down
            assert left(out) == wanted, (number, when, written[number].name)
            shutil.rmtree(out)


@pytest.fixture
def stopped(go, tmp_path, monkeypatch):
    """The folder of a run that was stopped after its first round."""

    seen = []

    def crash(path, content):
        write(path, content)
        seen.extend([path] if path.name == "adapter_model.safetensors" else [])
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run")
    return tmp_path / "run"


def lines(folder, change):
    file = folder / "rounds.jsonl"
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def edited(found):
    return [found[0], json.dumps(json.loads(found[1]) | {"bytes_up": {"c0": 1}}) + "\n"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: lines(f, lambda found: found * 2), "it has 4 lines, the state is of 2"),
        (lambda f: lines(f, edited), "line 2 is another"),
        (lambda f: lines(f, lambda found: [found[0], found[1][:30]]), "line 2 is another"),
        (lambda f: lines(f, lambda found: found[::-1]), "line 1 is another"),
        (lambda f: (f / "rounds.jsonl").write_bytes(b"\xff"), "it cannot be read as UTF-8"),
    ],
)
def test_records_that_say_something_else_are_neither_believed_nor_overwritten(stopped, go, tmp_path, damage, says):
    damage(stopped)
    kept = (stopped / "rounds.jsonl").read_bytes()
    with pytest.raises(
        RunFolderError, match=rf"rounds\.jsonl is not what the run recorded \({says}.*move the file away"
    ):
        go(stopped, resume=True)
    assert (stopped / "rounds.jsonl").read_bytes() == kept
    # The advice is good.
    (stopped / "rounds.jsonl").rename(stopped / "rounds.odd")
    go(stopped, resume=True)
    (stopped / "rounds.odd").unlink()
    go(tmp_path / "calm")
    assert left(stopped) == left(tmp_path / "calm")


def test_a_backup_of_recipe_and_state_is_enough(stopped, go, tmp_path):
    """docs/deploy.md says so; whatever else was copied earlier, or not at all, is made good."""
    go(tmp_path / "calm")
    for name, older in (("bare", False), ("older", True)):
        (tmp_path / name / "state").mkdir(parents=True)
        for file in ("recipe.toml", "state/global.safetensors"):
            shutil.copy(stopped / file, tmp_path / name / file)
        if older:
            first = (stopped / "rounds.jsonl").read_text().splitlines(keepends=True)[0]
            (tmp_path / name / "rounds.jsonl").write_text(first)
        _, watch = go(tmp_path / name, resume=True)
        assert [text for text in watch.warned if "0 of the 2 lines" in text] == ([] if older else watch.warned)
        assert bool(watch.warned) is not older
        found, wanted = left(tmp_path / name), left(tmp_path / "calm")
        for part in (found, wanted):
            for path in [path for path in part if path.startswith("payloads")]:
                del part[path]
        assert found == wanted


def test_a_state_put_back_to_an_older_backup_than_the_records_is_told_of(stopped, go, tmp_path):
    shutil.copy(stopped / "state" / "global.safetensors", tmp_path / "backup")
    go(stopped, resume=True)
    lines(stopped, lambda found: [*found, found[-1]])
    shutil.copy(tmp_path / "backup", stopped / "state" / "global.safetensors")
    with pytest.raises(RunFolderError, match="it has 4 lines, the state is of 2"):
        go(stopped, resume=True)


def test_a_state_of_another_seed_is_refused(stopped, go, tmp_path):
    go(tmp_path / "other", seed=5)
    shutil.copy(tmp_path / "other" / "state" / "global.safetensors", stopped / "state" / "global.safetensors")
    with pytest.raises(RunFolderError, match="belongs to another recipe or seed than"):
        go(stopped, resume=True)


@pytest.mark.parametrize("name", ["memory", "version", "ledger"])
def test_one_bit_of_anything_that_a_run_continues_from_is_refused(stopped, go, name):
    file = stopped / "state" / "global.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + length])
    if name == "memory":
        place = 8 + length + next(about["data_offsets"][0] for key, about in tree.items() if key.startswith("client|"))
    else:
        what = {"version": rb"\"version\":", "ledger": rb"\"known\":{\"c0\":"}[name]
        place = content.index(what) + len(what)
        assert chr(content[place]).isdigit()
    content[place] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(RunFolderError, match="is damaged, the run cannot be resumed .*checksum"):
        go(stopped, resume=True)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("state/global.safetensors", "is missing, the run cannot be resumed .put a backup"),
        ("state", "is missing, the run cannot be resumed .put a backup"),
        ("recipe.toml", "its recipe.toml is missing; put a backup"),
        ("adapter", None),
        ("adapter/adapter_config.json", None),
        ("payloads", None),
    ],
)
def test_what_was_deleted_is_made_again_or_asked_for(stopped, go, gone, says):
    path = stopped / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if says is None:
        go(stopped, resume=True)
        assert (stopped / "adapter" / "adapter_config.json").is_file()
        assert (stopped / "adapter" / "README.md").is_file()
        return
    kept = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    with pytest.raises(RunFolderError, match=says):
        go(stopped, resume=True)
    with pytest.raises(RunFolderError, match="holds a run already"):
        go(stopped)
    assert {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()} == kept


@pytest.mark.parametrize("text", ["", "x = [", "[" * 5_000, "\x00", "seed = 1" + "0" * 5_000])
def test_a_damaged_recipe_is_our_error(stopped, text):
    (stopped / "recipe.toml").write_text(text)
    with pytest.raises(RunFolderError):
        restore(RunFolder(stopped))


def test_the_tensors_of_a_run_are_read_beside_whatever_else_is_in_the_folder(stopped):
    (stopped / "rounds.jsonl").write_text("[]\n")
    assert tensor_table(RunFolder(stopped)).elements > 0


def test_of_two_runs_that_start_in_one_empty_folder_the_second_is_refused(recipe, go, tmp_path):
    """Both look at the folder before one of them has it."""
    out, watch = tmp_path / "run", Watch()
    late = setup.prepare(
        recipes.parse({**recipe, "seed": 7}), RunFolder(out), resume=False, observer=watch, assets=Assets()
    )
    go(out)
    kept = left(out)
    with pytest.raises(RunFolderError, match="holds a run already"):
        local.run(late, watch)
    assert left(out) == kept


def test_state_and_payloads_are_for_nobody_else(stopped):
    for name, mode in (("state", 0o700), ("payloads", 0o700)):
        assert stat.S_IMODE((stopped / name).stat().st_mode) == mode
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((stopped / "rounds.jsonl").stat().st_mode) == 0o666 & ~mask


def test_links_that_somebody_planted_are_not_followed(stopped, go, tmp_path):
    """At every name that a run writes to."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    folder.mkdir()
    (folder / "precious").write_text("mine")
    names = [file.relative_to(stopped) for file in stopped.rglob("*") if file.is_file() and file.name != ".lock"]
    names += ["summary.json", "adapter/README.md", *(f"{name}.tmp" for name in names)]
    for name in names:
        path = stopped / name
        if str(name) not in ("recipe.toml", "state/global.safetensors", "rounds.jsonl"):
            path.unlink(missing_ok=True)
            path.symlink_to(victim)
    go(stopped, resume=True)
    assert victim.read_text() == "mine"
    for name in (".lock", "state", "adapter", "payloads"):
        path, aside = stopped / name, tmp_path / "aside"
        path.rename(aside)
        path.symlink_to(victim if name == ".lock" else aside if name == "state" else folder)
        with pytest.raises(RunFolderError, match=f"{name} is a symbolic link"):
            go(stopped, resume=True) if name != "payloads" else RunFolder(stopped).keep_payloads(9, {}, b"x")
        path.unlink()
        aside.rename(path)
    assert victim.read_text() == "mine"
    assert [file.name for file in folder.iterdir()] == ["precious"]

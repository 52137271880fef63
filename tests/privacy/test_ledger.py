"""The ledger on a site's disk: what it lets through, what it refuses, and what survives."""

import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.errors import PrivacyError
from fedsrd.privacy import ledger
from fedsrd.privacy.accounting import Event, epsilon
from fedsrd.privacy.ledger import Ledger, kept_secret, read, site_secret
from fedsrd.privacy.options import ExamplePrivacy, SitePrivacy
from fedsrd.privacy.terms import agreed

EVENT = Event(noise_multiplier=1.0, sampling_rate=0.1, steps=10)


def test_every_round_is_written_down_before_it_is_let_through(tmp_path):
    book = Ledger(tmp_path / "p" / "ward", "run-1", 1e-5)
    first = book.charge(EVENT, "f1")
    second = book.charge(EVENT, "f2")
    assert first.epsilon == epsilon([EVENT], 1e-5) < second.epsilon
    found = read(tmp_path / "p" / "ward")
    assert found.rounds == 2
    assert found.runs["run-1"].events == [Event(noise_multiplier=1.0, sampling_rate=0.1, steps=20)]
    assert stat.S_IMODE((tmp_path / "p" / "ward" / "ledger.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "p" / "ward").stat().st_mode) == 0o700


def test_training_that_gives_the_same_bytes_costs_once(tmp_path):
    book = Ledger(tmp_path, "run-1", 1e-5)
    assert book.charge(EVENT, "f1") == book.charge(EVENT, "f1")
    assert read(tmp_path).rounds == 1
    # Without a fingerprint nobody knows that, and of another run it is no repeat.
    book.charge(EVENT, "")
    book.charge(EVENT, "")
    Ledger(tmp_path, "run-2", 1e-5).charge(EVENT, "f1")
    assert read(tmp_path).rounds == 4


def test_another_federation_has_the_same_budget(tmp_path):
    rules = SitePrivacy(epsilon=epsilon([EVENT.model_copy(update={"steps": 25})], 1e-5), delta=1e-5)
    for number in range(2):
        Ledger(tmp_path, f"run-{number}", 1e-5, limits=rules).charge(EVENT, str(number))
    before = (tmp_path / "ledger.json").read_bytes()
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon") as caught:
        Ledger(tmp_path, "run-3", 1e-5, limits=rules).charge(EVENT, "3")
    # The rule's number is the site's own.
    assert f"{rules.epsilon:g}"[:4] not in str(caught.value)
    assert (tmp_path / "ledger.json").read_bytes() == before


def test_rounds_and_the_runs_own_epsilon_are_bounds_too(tmp_path):
    book = Ledger(tmp_path / "a", "r", 1e-5, limits=SitePrivacy(epsilon=1e3, delta=1e-5, rounds=1))
    book.charge(EVENT, "1")
    with pytest.raises(PrivacyError, match="no more rounds"):
        book.charge(EVENT, "2")
    own = Ledger(tmp_path / "b", "r", 1e-5, run_epsilon=epsilon([EVENT], 1e-5))
    own.charge(EVENT, "1")
    with pytest.raises(PrivacyError, match="of this run is spent"):
        own.charge(EVENT, "2")


@settings(max_examples=40)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_ledger_ends_training_and_stays(tmp_path_factory, place, byte, cut):
    folder = tmp_path_factory.mktemp("ledger")
    book = Ledger(folder, "run-1", 1e-5)
    book.charge(EVENT, "f1")
    content = (folder / "ledger.json").read_bytes()
    place %= len(content)
    damaged = content[:place] if cut else content[:place] + bytes([byte]) + content[place + 1 :]
    (folder / "ledger.json").write_bytes(damaged)
    try:
        assert read(folder).events() == [EVENT]  # a byte of the layout, or no change
    except PrivacyError:
        with pytest.raises(PrivacyError, match="damaged"):
            book.charge(EVENT, "f2")
        assert (folder / "ledger.json").read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"books": {}, "sha256": ""}', b"[" * 100_000])
def test_what_is_no_ledger_is_refused(tmp_path, content):
    (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(PrivacyError, match="damaged"):
        read(tmp_path)


def test_a_ledger_with_other_numbers_is_no_ledger(tmp_path):
    Ledger(tmp_path, "r", 1e-5).charge(EVENT, "f")
    file = tmp_path / "ledger.json"
    tree = json.loads(file.read_text())
    tree["books"]["runs"]["r"]["events"][0]["steps"] = 1
    file.write_text(json.dumps(tree))
    with pytest.raises(PrivacyError, match="damaged"):
        read(tmp_path)


def test_the_key_is_made_once_and_neither_file_starts_anew_without_the_other(tmp_path):
    folder = tmp_path / "privacy" / "ward"
    secret = site_secret(folder)
    assert site_secret(folder) == secret
    assert len(secret) == 32
    assert stat.S_IMODE((folder / "noise.key").stat().st_mode) == 0o600
    Ledger(folder, "r", 1e-5).charge(EVENT, "f")
    kept = (folder / "ledger.json").read_bytes()
    (folder / "ledger.json").unlink()
    with pytest.raises(PrivacyError, match="gone"):
        Ledger(folder, "r", 1e-5).charge(EVENT, "f")
    assert site_secret(folder) == secret
    assert not (folder / "ledger.json").exists()
    (folder / "ledger.json").write_bytes(kept)
    (folder / "noise.key").unlink()
    with pytest.raises(PrivacyError, match="gone"):
        site_secret(folder)


def test_a_key_that_others_can_read_or_that_is_damaged_is_refused(tmp_path):
    file = tmp_path / "noise.key"
    kept_secret(file)
    file.chmod(0o640)
    with pytest.raises(PrivacyError, match="open to others"):
        kept_secret(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(PrivacyError, match="damaged"):
        kept_secret(file)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrivacyError, match="cannot be read"):
        kept_secret(file)


def test_a_disk_that_is_full_trains_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    book = Ledger(tmp_path, "r", 1e-5)
    book.charge(EVENT, "1")
    monkeypatch.setattr(ledger, "write_atomically", full)
    with pytest.raises(PrivacyError, match="nothing is trained"):
        book.charge(EVENT, "2")
    assert read(tmp_path).rounds == 1


ASKED = ExamplePrivacy(noise_multiplier=1.0, delta=1e-6, clip=0.7)


def test_nobody_asks_for_anything():
    assert agreed(None, None, 0.1, 10) is None


def test_a_recipes_terms_hold_where_the_site_says_nothing():
    found = agreed(ASKED, None, 0.1, 10)
    assert (found.noise_multiplier, found.clip, found.delta, found.tell_loss) == (1.0, 0.7, 1e-6, False)
    wanted = agreed(ExamplePrivacy(epsilon=2.0), None, 0.1, 10)
    assert epsilon([Event(noise_multiplier=wanted.noise_multiplier, sampling_rate=0.1, steps=10)], 1e-5) <= 2.0
    assert wanted.run_epsilon == 2.0


def test_the_sites_noise_and_clip_win_where_they_are_stricter():
    rules = SitePrivacy(epsilon=3, delta=1e-5, noise_multiplier=4.0, clip=0.1)
    found = agreed(ASKED, rules, 0.1, 10)
    assert (found.noise_multiplier, found.clip) == (4.0, 0.1)
    own = agreed(None, rules, 0.1, 10)
    assert (own.noise_multiplier, own.clip, own.delta) == (4.0, 0.1, 1e-5)
    weak = SitePrivacy(epsilon=3, delta=1e-5, noise_multiplier=0.5)
    assert agreed(ASKED, weak, 0.1, 10).noise_multiplier == 1.0
    asked = ASKED.model_copy(update={"tell_loss": True})
    assert agreed(asked, None, 0.1, 10).tell_loss
    assert not agreed(asked, weak, 0.1, 10).tell_loss


def test_a_recipe_without_privacy_is_refused_where_the_site_gives_no_noise_for_it():
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        agreed(None, SitePrivacy(epsilon=3, delta=1e-5), 0.1, 10)


def test_packages_that_are_missing_are_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "opacus" else True)
    with pytest.raises(PrivacyError, match=r"opacus: pip install .fedsrd\[privacy\]"):
        agreed(ASKED, None, 0.1, 10)

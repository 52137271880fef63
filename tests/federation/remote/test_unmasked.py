"""What a site remembers of the sums that it has helped to unmask."""

import pytest

from fedsrd.errors import SecureAggregationError
from fedsrd.federation.remote.unmasked import FILE, Unmasked, origin

ONE, TWO = origin({"model": 1}, 0, 0, "a"), origin({"model": 1}, 1, 0, "a")


def test_one_set_for_an_origin(tmp_path):
    sums = Unmasked(tmp_path / "unmasked" / "ward")
    sums.check(ONE, ["a", "b", "c"])
    sums.note(ONE, ["a", "b", "c"])
    sums.note(ONE, ("c", "b", "a"))
    again = Unmasked(tmp_path / "unmasked" / "ward")
    for look in (again.check, again.note):
        with pytest.raises(SecureAggregationError, match="give the run another seed"):
            look(ONE, ["a", "b"])
    again.note(TWO, ["a", "b"])
    again.check(ONE, ["a", "b", "c"])
    file = tmp_path / "unmasked" / "ward" / FILE
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_an_origin_is_the_training_alone():
    tables = {"model": {"id": "m"}, "lora": {"rank": 4}, "training": {"steps": 1}, "rounds": 3}
    one = origin(tables, 0, 0, "a")
    assert one == origin({**tables, "rounds": 4, "privacy": {}}, 0, 0, "a")
    others = [origin({**tables, name: {}}, 0, 0, "a") for name in ("model", "lora", "training")]
    others += [origin(tables, 1, 0, "a"), origin(tables, 0, 1, "a"), origin(tables, 0, 0, "b")]
    assert len({one, *others}) == 7


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":1,"sums":{"a":"b"}}', b'{"format":2,"sums":{}}'])
def test_what_is_damaged_unmasks_nothing_and_stays(tmp_path, content):
    sums = Unmasked(tmp_path / "unmasked")
    sums.note(ONE, ["a", "b"])
    (tmp_path / "unmasked" / FILE).write_bytes(content)
    for look in (sums.check, sums.note):
        with pytest.raises(SecureAggregationError, match="is damaged, so nobody knows"):
            look(TWO, ["a", "b"])
    assert (tmp_path / "unmasked" / FILE).read_bytes() == content


def test_links_are_not_followed(tmp_path):
    sums = Unmasked(tmp_path / "unmasked")
    sums.note(ONE, ["a", "b"])
    (tmp_path / "unmasked" / FILE).rename(tmp_path / "elsewhere")
    (tmp_path / "unmasked" / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecureAggregationError, match="cannot be read"):
        sums.check(ONE, ["a", "b"])

"""What a hostile or broken other side may send: every message is refused with its reason, or understood."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsrd.errors import DataError, PayloadError
from fedsrd.federation.messages import Broadcast, Snapshot, Start, Sync
from fedsrd.federation.remote import header
from fedsrd.federation.remote.header import Envelope
from fedsrd.federation.remote.site import site_of

DIGEST = "a" * 64
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
PAYLOAD = st.binary(max_size=40)
BROADCASTS = st.lists(
    st.builds(Broadcast, st.integers(1, 9), st.integers(1, 9), PAYLOAD, st.just(DIGEST), st.integers(1, 9)), max_size=4
)
SYNCS = st.builds(
    Sync,
    st.none() | st.builds(Start, PAYLOAD, st.just(DIGEST)),
    st.none() | st.builds(Snapshot, st.integers(0, 9), PAYLOAD, PAYLOAD, st.just(DIGEST)),
    BROADCASTS.map(tuple),
)


@given(SYNCS)
def test_a_sync_comes_back_as_it_went(sync):
    found, payload = header.header_of_sync(sync)
    assert len(payload) == sync.size
    again = header.SyncHeader.model_validate_json(found.model_dump_json())
    assert header.sync_of_header(again, payload) == sync


@given(SYNCS, st.integers(1, 5), st.booleans())
def test_sizes_that_do_not_add_up_are_refused(sync, more, less):
    found, payload = header.header_of_sync(sync)
    wrong = payload[:-more] if less and payload else payload + bytes(more)
    with pytest.raises(PayloadError, match="the header tells of"):
        header.sync_of_header(found, wrong)


@given(NAMES, st.integers(-1, 9), st.binary(max_size=9))
def test_an_answer_comes_back_as_it_went(name, held, payload):
    reply = header.TrainReply(name=name, round=3, held=held, examples=2, loss=0.5)
    assert header.unpack(header.pack(reply, payload), header.TrainReply) == (reply, payload)
    assert header.kind_of(header.pack(reply)) == "train-reply"


GOOD = {"kind": "train-reply", "name": "a", "round": 1, "held": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "../../etc"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"round": -1}, "round"),
        ({"round": "one"}, "round"),
        ({"examples": -5}, "examples"),
        ({"examples": 10**400}, "examples"),
        ({"examples": 10**9 + 1}, "examples"),
        ({"seconds": 5}, "seconds"),
        ({"surprise": 1}, "surprise"),
        ({"kind": "train"}, "kind"),
    ],
)
def test_a_wrong_field_is_named(change, reason):
    text = json.dumps({**GOOD, **change})
    with pytest.raises(PayloadError, match=f"a TrainReply header is wrong at {reason}"):
        header.unpack(Envelope(text), header.TrainReply)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", "[" * 100_000, '{"kind":', "\x00", '{"kind": {}}' * 2]
)
def test_what_is_no_header_is_refused(text):
    for read in (header.kind_of, lambda found: header.unpack(found, header.Train)):
        with pytest.raises(PayloadError):
            read(Envelope(text))


def test_a_header_that_is_too_long_is_refused():
    long = Envelope("x" * (header.LIMIT + 1))
    for read in (header.kind_of, lambda found: header.unpack(found, header.Train)):
        with pytest.raises(PayloadError, match="more than"):
            read(long)


def test_another_protocol_is_told():
    hello = header.Hello(federation="0" * 16, names=[], node=1, nonce="0" * 32).model_copy(update={"protocol": 99})
    with pytest.raises(PayloadError, match=f"speaks protocol 99, this one {header.PROTOCOL}"):
        header.unpack(header.pack(hello), header.Hello)


def test_the_protocol_without_keys_is_told_too():
    """As version 2 greeted and answered: fields are missing, and that is not what to say of it."""
    hello = {"kind": "hello", "protocol": 2, "federation": "0" * 16, "names": []}
    for kind in (header.Hello, header.HelloReply):
        with pytest.raises(PayloadError, match=f"speaks protocol 2, this one {header.PROTOCOL}: install one version"):
            header.unpack(Envelope(json.dumps(hello)), kind)


def test_a_federation_cannot_name_a_folder():
    for name in ("../../../../tmp", "x" * 16, "0" * 15, ""):
        text = json.dumps({"kind": "hello", "protocol": header.PROTOCOL, "federation": name, "names": [], "node": 1})
        with pytest.raises(PayloadError, match="federation"):
            header.unpack(Envelope(text), header.Hello)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["kind", "name", "round", "held", "sync", "job", "digest"]), x)
        ),
    )
)
def test_whatever_comes_is_read_or_refused(tree):
    found = Envelope(json.dumps(tree), b"\x80")
    for kind in (
        header.TrainReply,
        header.Train,
        header.Finalize,
        header.Evaluate,
        header.HelloReply,
        header.Hello,
        header.SyncReply,
    ):
        try:
            header.unpack(found, kind)
        except PayloadError:
            continue


# Sites.


def test_a_server_cannot_choose_a_file_here():
    from fedsrd.recipe import DataSection

    site = site_of({"client": "st-mary", "state": "/tmp/x"})
    for source in ("/etc/passwd", "some/hub-set"):
        with pytest.raises(DataError, match="which only the site itself may"):
            site.sections([DataSection(source=source)])
    assert site.sections([DataSection(source="embedded:code")])
    with pytest.raises(DataError, match="has no data: start its SuperNode with"):
        site.sections([])
    own = site_of({"client": "st-mary", "data": "/srv/x.jsonl"})
    assert [section.source for section in own.sections([DataSection(source="/etc/passwd")])] == ["/srv/x.jsonl"]


def test_a_sites_data_may_be_described_in_a_file(tmp_path):
    file = tmp_path / "data.toml"
    file.write_text('[[data]]\nsource = "a.csv"\ncolumns = { instruction = "q" }\n[[data]]\nsource = "b.csv"\n')
    site = site_of({"client": "x", "data": str(file)})
    assert [section.source for section in site.data] == ["a.csv", "b.csv"]
    assert site.data[0].columns == {"instruction": "q"}
    for text, reason in (
        ("[data", "cannot be read as TOML"),
        ("x = 1", "expected .data."),
        ("[data]\nsorce='x'", "data"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            site_of({"client": "x", "data": str(file)})
    with pytest.raises(DataError, match="cannot be read"):
        site_of({"client": "x", "data": str(tmp_path / "no.toml")})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "has no name"),
        ({"client": "a b"}, "expected up to 64 letters"),
        ({"client": "a", "dta": "x"}, "has 'dta', which means nothing here"),
        ({"partition-id": 7}, "the recipe has 2 clients"),
    ],
)
def test_a_wrong_node_config_is_told(config, reason):
    with pytest.raises(DataError, match=reason):
        site_of(config, ["a", "b"])


def test_a_message_for_somebody_else_is_refused():
    with pytest.raises(PayloadError, match="a message for client a, but this is b"):
        site_of({"client": "b"}, asked="a")

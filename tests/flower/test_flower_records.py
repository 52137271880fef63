"""Messages as Flower records: every one comes back as it went, and what is none of ours is refused with its reason."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsrd.errors import PayloadError
from fedsrd.federation.remote import header
from fedsrd.federation.remote.header import Envelope
from fedsrd.flower import records

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@given(NAMES, st.integers(-1, 9), st.binary(max_size=9))
def test_an_answer_comes_back_as_it_went(name, held, payload):
    reply = header.TrainReply(name=name, round=3, held=held, examples=2, loss=0.5)
    content = records.content_of(header.pack(reply, payload))
    assert header.unpack(records.envelope_of(content), header.TrainReply) == (reply, payload)
    assert header.kind_of(records.envelope_of(content)) == "train-reply"
    # One Array a message at most: Flower sends every one on its own.
    assert sum(len(arrays) for arrays in content.array_records.values()) == (1 if payload else 0)


def test_messages_of_others_are_refused():
    def kind_of(content):
        return header.kind_of(records.envelope_of(content))

    for found in (
        RecordDict(),
        RecordDict({records.HEADER: ConfigRecord({"json": 5})}),
        RecordDict({records.HEADER: ConfigRecord({})}),
        RecordDict({records.HEADER: ConfigRecord({"json": "x" * (header.LIMIT + 1)})}),
    ):
        with pytest.raises(PayloadError, match="not one of FedSRD's|more than"):
            kind_of(found)


def test_arrays_of_others_are_no_payload():
    content = records.content_of(Envelope("{}"))
    content[records.PAYLOADS] = ArrayRecord({"other": Array("uint8", (1,), "x", b"\x80")})
    assert records.envelope_of(content) == Envelope("{}", b"")
    content[records.PAYLOADS] = ArrayRecord({"bytes": Array("uint8", (1,), "x", b"\x80")})
    assert records.envelope_of(content) == Envelope("{}", b"\x80")


def test_names_of_metrics_are_bounded_and_do_nothing():
    told = {"num-examples": 3, "\x1b[2J" + "x" * 4_000_000: 1.0}
    _, found = records.metrics_of(RecordDict({records.METRICS: MetricRecord(told)}))
    (name,) = found
    assert len(name) == 100
    assert "\x1b" not in name
    many = MetricRecord({"num-examples": 3} | {str(place): 1.0 for place in range(records.MOST_METRICS)})
    with pytest.raises(PayloadError, match="257 metrics; expected at most 256"):
        records.metrics_of(RecordDict({records.METRICS: many}))


IN_A_SIMULATION = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run() (pid=7)
           ^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/app/client_app.py", line 23, in train
    message.content["arrays"]
{own}

The above exception was the direct cause of the following exception:

ray::ClientAppActor.run() (pid=7, ip=1.2.3.4)
  File "/flwr/ray_actor.py", line 70, in run
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException:
Exception ClientAppException occurred. Message: 'arrays''>"""


@pytest.mark.parametrize(
    ("own", "reason", "ours"),
    [
        ("KeyError: 'arrays'", "KeyError: 'arrays'", False),
        ("fedsrd.errors.FederationError: it has 1: expected 2", "it has 1: expected 2", True),
        ("ValueError: one\n\nDuring handling, another:\n\nmine.OddError: two", "OddError: two", False),
        ("nothing that looks like one", None, False),
    ],
)
def test_an_error_of_a_simulation_says_what_the_client_raised(own, reason, ours):
    reply = Message(Error(2, IN_A_SIMULATION.format(own=own)), reply_to=Message(RecordDict(), 1, "train"))
    if reason is not None:
        assert records.reason_of(reply) == reason
    assert records.is_ours(reply) == ours
    plain = Message(Error(2, "<class 'KeyError'>:<''arrays''>"), reply_to=Message(RecordDict(), 1, "train"))
    assert (records.reason_of(plain), records.is_ours(plain)) == ("KeyError: 'arrays'", False)

"""Our messages as Flower records: the header as one text, and all payload bytes of a direction in one Array.

One Array, because Flower sends every one on its own: 448 small ones took ten times as long as one (flwr 1.41).
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from pydantic import ValidationError

from fedsrd.errors import PayloadError
from fedsrd.federation.messages import Claims
from fedsrd.federation.remote import respond as remote
from fedsrd.federation.remote.header import Envelope
from fedsrd.text import foreign

HEADER = "fedsrd.header"
PAYLOADS = "fedsrd.payloads"
METRICS = "metrics"
MOST_METRICS = 256
LARGEST = 1e300
"""Of a metric: the mean of such numbers is one."""


def content_of(message: Envelope) -> RecordDict:
    """A message as the content of one of Flower's."""
    content = RecordDict({HEADER: ConfigRecord({"json": message.text})})
    if message.payload:
        data = message.payload
        content[PAYLOADS] = ArrayRecord({"bytes": Array("uint8", (len(data),), "fedsrd.bytes", data)})
    return content


def envelope_of(content: RecordDict) -> Envelope:
    """The inverse of `content_of`.

    Raises:
        PayloadError: the content is not one of ours.
    """
    record = content.config_records.get(HEADER)
    text = None if record is None else record.get("json")
    if not isinstance(text, str):
        raise PayloadError("the message is not one of FedSRD's: is the same app at both ends?")
    arrays = content.array_records.get(PAYLOADS)
    return Envelope(text, b"" if arrays is None or "bytes" not in arrays else arrays["bytes"].data)


def metrics_of(content: RecordDict) -> tuple[int, dict[str, float]]:
    """What a client's own evaluation found: its number of examples, and the metrics that can be averaged. Lists cannot,
    nor what is no number.

    Raises:
        PayloadError: there is not one record of them, too many metrics, or its num-examples are none that can be.
    """
    found = list(content.metric_records.values())
    if len(found) != 1:
        raise PayloadError(f"{len(found)} MetricRecords; expected one")
    try:
        said = Claims.model_validate({"examples": found[0].get("num-examples", 0)})
    except ValidationError as error:
        raise PayloadError(f"num-examples: {error.errors()[0]['msg']}") from None
    if len(found[0]) > MOST_METRICS:
        raise PayloadError(f"{len(found[0])} metrics; expected at most {MOST_METRICS}")
    rest = {foreign(key, 100): value for key, value in found[0].items() if key != "num-examples"}
    numbers = {key: value for key, value in rest.items() if isinstance(value, int | float) and abs(value) <= LARGEST}
    return said.examples or 0, {key: float(value) for key, value in numbers.items()}


def respond(message: Message, context: Context, runtime: remote.ClientRuntime) -> Message:
    """The reply to one of the server's messages. Errors as `federation.remote.respond.respond`."""
    reply = remote.respond(envelope_of(message.content), context.node_config, runtime, context.node_id)
    content = content_of(reply.message)
    if reply.metrics:
        content[METRICS] = MetricRecord(dict(reply.metrics))
    return Message(content, reply_to=message)

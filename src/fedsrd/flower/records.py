"""Our messages as Flower records: the header as one text, and all payload bytes of a direction in one Array.

One Array, because Flower sends every one on its own: 448 small ones took ten times as long as one (flwr 1.41).
"""

import re
from collections.abc import Mapping, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from pydantic import ValidationError

from fedsrd.errors import PayloadError
from fedsrd.explain import in_words
from fedsrd.federation.messages import Claims
from fedsrd.federation.remote import respond as remote
from fedsrd.federation.remote.header import Envelope
from fedsrd.text import foreign

HEADER = "fedsrd.header"
PAYLOADS = "fedsrd.payloads"
METRICS = "metrics"
MOST_METRICS = 256
LONGEST_METRIC = 4096
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


Metric = float | list[float]


def metrics_of(content: RecordDict) -> tuple[int, dict[str, Metric]]:
    """What a client's own code found: its number of examples, and the metrics that can be averaged, numbers and lists
    of them.

    Raises:
        PayloadError: there is not one record of them, too many metrics, or its num-examples are none that can be.
    """
    found = list(content.metric_records.values())
    if len(found) != 1:
        raise PayloadError(f"{len(found)} MetricRecords; expected one")
    try:
        said = Claims.model_validate({"examples": found[0].get("num-examples", 0)})
    except ValidationError as error:
        raise PayloadError(f"num-examples: {in_words(dict(error.errors()[0]))}") from None
    return said.examples or 0, _numbers(found[0])


def _numbers(record: MetricRecord) -> dict[str, Metric]:
    if len(record) > MOST_METRICS:
        raise PayloadError(f"{len(record)} metrics; expected at most {MOST_METRICS}")
    found = {foreign(key, 100): _metric(value) for key, value in record.items() if key != "num-examples"}
    return {key: value for key, value in found.items() if value is not None}


def _metric(value: object) -> Metric | None:
    if isinstance(value, int | float):
        return float(value) if abs(value) <= LARGEST else None
    if not isinstance(value, list) or not 0 < len(value) <= LONGEST_METRIC:
        return None
    found = [_metric(one) for one in value]
    return [one for one in found if isinstance(one, float)] if all(isinstance(one, float) for one in found) else None


def metrics_beside(content: RecordDict) -> dict[str, Metric]:
    """What a client's own training says beside its update; nothing where that cannot be read, for it is only shown."""
    try:
        return _numbers(content.metric_records[METRICS]) if METRICS in content.metric_records else {}
    except PayloadError:
        return {}


def mean(found: Sequence[tuple[Metric, int]]) -> Metric | None:
    """Of values weighted by their counts, and of lists of one length element by element; None where they are not of one
    kind. Shares first, so that no product overflows.
    """
    lists = [value for value, _ in found if isinstance(value, list)]
    total = sum(count for _, count in found)
    if not lists:
        return sum(value * (count / total) for value, count in found if isinstance(value, float))
    if len(lists) < len(found) or len({len(value) for value in lists}) > 1:
        return None
    return [
        sum(of) for of in zip(*([one * (n / total) for one in v] for v, n in found if isinstance(v, list)), strict=True)
    ]


def means(found: Sequence[tuple[int, Mapping[str, Metric]]]) -> dict[str, Metric]:
    """The weighted mean of each metric over the clients that have it; numbers, where others give a list."""
    told: dict[str, Metric] = {}
    for key in dict.fromkeys(key for _, metrics in found for key in metrics):
        values = [(metrics[key], count or 1) for count, metrics in found if key in metrics]
        numbers = [(value, count) for value, count in values if isinstance(value, float)]
        value = mean(numbers or values)
        if value is not None:
            told[key] = value
    return told


def reason_of(reply: Message) -> str:
    """What an error reply says, without Python's wrapping, nor that of Flower's simulation."""
    reason = reply.error.reason or f"Flower's error {reply.error.code}"
    kind, text = _raised(reason)
    if not kind:
        return foreign(reason)
    return foreign(text if kind.startswith("fedsrd.") else f"{kind.rpartition('.')[2]}: {text}")


def is_ours(reply: Message) -> bool:
    """Whether a reply, or an error, was made by FedSRD at the other end."""
    if reply.has_error():
        return _raised(reply.error.reason or "")[0].startswith("fedsrd.")
    return HEADER in reply.content.config_records


def _raised(reason: str) -> tuple[str, str]:
    """The class and the text of the exception that an error reply tells of; "" where it tells of none."""
    if reason.startswith("<class 'ray."):
        # A traceback as text: the client's own exception stands last before Flower's, which it led to.
        own = reason.rpartition("\n\nThe above exception was the direct cause of")[0]
        for found in list(re.finditer(r"^([A-Za-z_][\w.]{0,200}): ", own, re.MULTILINE))[-1:]:
            return found[1], own[found.end() :]
    match = re.fullmatch(r"<class '(?P<kind>[\w.]+)'>:<'(?P<text>.*)'>", reason, re.DOTALL)
    return ("", "") if match is None else (match["kind"], match["text"])


def respond(message: Message, context: Context, runtime: remote.ClientRuntime) -> Message:
    """The reply to one of the server's messages. Errors as `federation.remote.respond.respond`."""
    reply = remote.respond(envelope_of(message.content), context.node_config, runtime, context.node_id)
    content = content_of(reply.message)
    if reply.metrics:
        content[METRICS] = MetricRecord(dict(reply.metrics))
    return Message(content, reply_to=message)

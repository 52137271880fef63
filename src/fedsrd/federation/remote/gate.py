"""The one place through which everything leaves a site: replies and errors, cut to its rules, written down first."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsrd.errors import FederationError, FedSRDError, RulesError
from fedsrd.federation.messages import Phases
from fedsrd.federation.remote import header, rules
from fedsrd.federation.remote.audit import Audit
from fedsrd.federation.remote.counts import Counts
from fedsrd.federation.remote.header import About, Envelope, Header, Job, Order
from fedsrd.federation.remote.rules import BrokenRuleError, Rules, SiteFile
from fedsrd.federation.remote.site import is_simulation, state_of
from fedsrd.places import without_folders
from fedsrd.text import foreign
from fedsrd.training.options import TrainingOptions

Metrics = Mapping[str, Any]
LOGGER = logging.getLogger("flwr")
UNTOLD = "the site tells no reasons; its own log has this one"
_NUMBERS = (
    "examples",
    "loss",
    "seconds",
    "epsilon",
    "delta",
    "failure",
    "held",
    "digest",
    "name",
    "key",
    "phase",
    "masked",
)
"""Fields of a header that say something of the site."""


@dataclass(frozen=True)
class Reply:
    """What goes back: a message, and where the client evaluated, its metrics beside it."""

    message: Envelope
    metrics: Metrics = field(default_factory=dict)

    @property
    def parts(self) -> tuple[bytes, bytes, bytes]:
        """All that leaves: the header, the payload, the metrics as JSON (empty where there are none)."""
        metrics = json.dumps(dict(self.metrics), sort_keys=True, default=str).encode() if self.metrics else b""
        return self.message.text.encode(), self.message.payload, metrics


@dataclass(frozen=True)
class Answer:
    """What a handler wants to send. `refused` is what was asked, where the failure is of the site's rules."""

    header: Header
    payload: bytes = b""
    metrics: Metrics = field(default_factory=dict)
    refused: Mapping[str, Any] | None = None


class Gate:
    """One message's way out of a site.

    Args:
        settings: the site's own (`site.site_of`).
        about: what the server's message is about.
    """

    def __init__(self, settings: Mapping[str, Any], about: About) -> None:
        self._settings = settings
        self._about = about
        self._state = state_of(settings)
        self.simulated = "client" not in settings and is_simulation()
        # In a simulation nothing leaves the machine, and its clients leave nothing behind.
        self._audit = None if self.simulated else Audit(self._state / "audit")
        self.site = SiteFile()
        self._digest = ""
        self.asked: Mapping[str, Any] | None = None

    @property
    def rules(self) -> Rules:
        """Those in force."""
        return self.site.rules

    def open(self) -> None:
        """Reads the site's rules.

        Raises:
            RulesError: they cannot be read; the message says why, and is for this site only (`refusal`).
        """
        if "rules" in self._settings:
            self.site, self._digest = rules.load(Path(os.path.expanduser(str(self._settings["rules"]))))
            LOGGER.info(f"The site's rules: {self._digest[:16]}")
        elif not self.simulated:
            LOGGER.info("No rules are set at this site (--node-config 'rules=\"FILE\"'): the server decides")

    def admit(self, order: Order, *, knows_model: bool) -> None:
        """Before anything of a job is loaded. Raises BrokenRuleError where the site's rules forbid it."""
        self.rules.check_run(order.federation)
        self.rules.check_job(order.job, knows_model=knows_model)
        if self.site.privacy is not None and not knows_model:
            raise rules.broken("epsilon", "the client's own code trains, and nobody can keep it", table="privacy")

    def charge(self, order: Order, *, knows_model: bool) -> Callable[[int], None]:
        """What counts a round before it is trained, given the number of examples (`counts.Counts.charge`)."""

        def count(examples: int) -> None:
            if not self._digest or self._audit is None:
                return
            steps, batch = None, 1
            if knows_model:
                training = TrainingOptions.model_validate(rules.section(order.job, "training"))
                steps, batch = training.steps, training.batch_size * training.accumulation
            counts = Counts(self._state / "counts", self._audit.trained_by_rules)
            counts.charge(self.rules, order.federation, steps, batch, examples)

        return count

    def reply(self, answer: Answer) -> Reply:
        """The answer as it leaves, once it is written down.

        Raises:
            BrokenRuleError: it may not leave as it is.
            FederationError: it cannot be written down.
        """
        if answer.payload:
            # Handlers have asked before they kept anything; whatever comes to be sent later is asked here.
            if isinstance(answer.header, header.TrainReply) and not answer.header.masked:
                self.rules.check_plain()
            self.rules.check_size(len(answer.payload))
        said = self._cut(answer.header, ruled=answer.refused is not None)
        metrics = dict(answer.metrics)
        if isinstance(answer.header, header.TrainReply) and not (self.rules.tell.metrics and self.rules.tell.loss):
            metrics = {}  # any of them may be the loss under another name
        if "num-examples" in metrics and not self.rules.tell.examples:
            metrics["num-examples"] = 1
        reply = Reply(header.pack(said, answer.payload), metrics)
        told = {name: value for name, value in said.model_dump(mode="json").items() if name in _NUMBERS and _is(value)}
        if metrics:
            told["metrics"] = {foreign(name, 100): _short(value) for name, value in list(metrics.items())[:64]}
        self._write(getattr(said, "kind", ""), reply.parts, told, answer.refused)
        return reply

    def refusal(self, error: Exception) -> FedSRDError:
        """The error as it may leave, once it is written down: without the folders of paths, and without the text of
        what is no error of ours, which may quote anything.
        """
        if isinstance(error, RulesError) and not isinstance(error, BrokenRuleError):
            # Why a file cannot be read may quote it, and its numbers are the site's.
            LOGGER.error(str(error))
            found: FedSRDError = RulesError("the site's rules cannot be applied; its own log says why")
        elif isinstance(error, FedSRDError):
            places = [str(self._settings.get(key, "")) for key in ("data", "import", "key", "rules", "state")]
            text = without_folders(str(error), places)
            found = type(error)(text if self.rules.tell.reasons or isinstance(error, RulesError) else UNTOLD)
        elif isinstance(error, OSError):
            text = f"the site's disk: {error.strerror or type(error).__name__}"
            found = FederationError(text if self.rules.tell.reasons else UNTOLD)
        else:
            text = f"{type(error).__name__} at the site; its own log says more"
            found = FederationError(text if self.rules.tell.reasons else UNTOLD)
        try:
            said = foreign(found)
            self._write("error", (str(found).encode(), b"", b""), {"failure": said}, self.asked)
        except FederationError as unwritten:
            # The carrier answers the server in any case; this text says nothing of the site.
            LOGGER.error(str(unwritten))
            return FederationError("the site's audit log cannot be written; nothing is sent")
        return found

    def _cut(self, said: Header, *, ruled: bool) -> Header:
        tell = self.rules.tell
        changes: dict[str, Any] = {}
        if isinstance(said, header.TrainReply):
            # Epsilon follows from noise, steps and the number of examples: whoever has three knows the fourth.
            changes |= {} if tell.examples else {"examples": None, "epsilon": None, "delta": None}
            changes |= {} if tell.loss else {"loss": None}
            changes |= {} if tell.seconds else {"seconds": Phases()}
        if getattr(said, "failure", None) is not None and not ruled and not tell.reasons:
            changes["failure"] = UNTOLD
        return said.model_copy(update=changes)

    def _write(
        self, kind: str, parts: tuple[bytes, bytes, bytes], told: Mapping[str, Any], asked: Mapping[str, Any] | None
    ) -> None:
        if self._audit is None:
            return
        whole = hashlib.sha256()
        for part in parts:
            whole.update(part)
        self._audit.write(
            client=foreign(self._settings.get("client") or told.get("name", ""), 64),
            run=self._about.run,
            round=self._about.round,
            kind=kind,
            bytes=sum(len(part) for part in parts),
            payload=len(parts[1]),
            sha256=whole.hexdigest(),
            told=dict(told),
            asked=dict(asked or {}),
            rules=self._digest,
        )


def asked(job: Job) -> dict[str, Any]:
    """What a job asks for, for the site's own log."""
    found = {
        "method": job.method.get("name"),
        "model": rules.section(job, "model").get("id"),
        "revision": rules.section(job, "model").get("revision"),
        "rank": rules.section(job, "lora").get("rank"),
        "steps": rules.section(job, "training").get("steps"),
    }
    return {name: _short(value) for name, value in found.items() if value is not None}


def _is(value: Any) -> bool:
    return (
        value is not False
        and value not in (None, "", {})
        and not (isinstance(value, dict) and all(one is None for one in value.values()))
    )


def _short(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) and abs(value) < 1e300 else foreign(value, 100)

"""A site's own rules: what its process takes on and lets out, whatever a server asks.

They lie in a TOML file of the site, which is read anew for every message. What breaks one is refused by the rule's
name; the rule's number stays at the site.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsrd import toml
from fedsrd.core.lora import modules_of
from fedsrd.core.tensors import TensorTable
from fedsrd.errors import RecipeError, RulesError
from fedsrd.explain import explain, refuse_unknown, tables
from fedsrd.federation.remote.header import Federation, Job
from fedsrd.privacy.options import SitePrivacy
from fedsrd.text import foreign

Count = Annotated[int, Field(ge=1, le=10**9)]
Entry = Annotated[str, Field(min_length=1, max_length=512)]
Entries = Annotated[list[Entry], Field(min_length=1, max_length=1024)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Tell(_Section):
    """What a site says about itself beside its updates.

    Attributes:
        examples: how many training examples it has. Not told, it can be in no run with weighting = "examples".
        loss: its mean training loss.
        seconds: how long its phases took.
        metrics: what its own code says of evaluation and training (there, with `loss`); not told, it does not evaluate.
        reasons: why something failed here. A rule that was broken is always named.
    """

    examples: bool = True
    loss: bool = True
    seconds: bool = True
    metrics: bool = True
    reasons: bool = True


class Rules(_Section):
    """The [rules] table; what is not said is not limited.

    Attributes:
        methods: names that are accepted.
        models: base models that are accepted: a hub's id or a path as the server names it, or "ID@REVISION".
        targets: last parts of the names of layers that may be adapted, such as "q_proj".
        rank: largest rank of an adapter.
        parameters: most trained parameters.
        runs: ids of runs that are accepted (16 hexadecimal digits, `fedsrd site log` shows them).
        rounds: of training on this site's data in all runs together.
        rounds_per_run: of training in one run.
        steps: of the optimizer in all runs together.
        epochs: passes over this site's data in all runs together.
        update_bytes: largest update that leaves.
        secure_aggregation: whether updates leave only masked, so that a server learns their sum alone.
        tell: what the site says about itself.
    """

    methods: Entries | None = None
    models: Entries | None = None
    targets: Entries | None = None
    rank: Count | None = None
    parameters: Annotated[int, Field(ge=1, le=10**12)] | None = None
    runs: Annotated[list[Federation], Field(min_length=1, max_length=1024)] | None = None
    rounds: Count | None = None
    rounds_per_run: Count | None = None
    steps: Count | None = None
    epochs: Annotated[float, Field(gt=0, le=1e9)] | None = None
    update_bytes: Annotated[int, Field(ge=1, le=1 << 50)] | None = None
    secure_aggregation: bool = False
    tell: Tell = Tell()

    def check_run(self, federation: str) -> None:
        """Raises BrokenRuleError where the run is none that is accepted."""
        if self.runs is not None and federation not in self.runs:
            raise broken("runs", f"run {federation} is not among them")

    def check_job(self, job: Job, *, knows_model: bool) -> None:
        """Raises BrokenRuleError where method or model is none that is accepted.

        Args:
            job: the server's.
            knows_model: whether the job's recipe says all; else the client's own code chooses the model.
        """
        method = job.method.get("name")
        if self.methods is not None and method not in self.methods:
            raise broken("methods", f"method {foreign(method, 64)} is not among them")
        for rule in ("models", "steps", "epochs"):
            if getattr(self, rule) is not None and not knows_model:
                raise broken(rule, "the client's own code trains, and nobody can check this of it")
        if self.models is None:
            return
        model = section(job, "model")
        name, revision = model.get("id"), model.get("revision")
        if name not in self.models and f"{name}@{revision}" not in self.models:
            at = "" if revision is None else f" at revision {foreign(revision, 64)}"
            raise broken("models", f"model {foreign(name, 100)}{at} is not among them")

    def check_table(self, table: TensorTable) -> None:
        """Raises BrokenRuleError where the adapter is larger than allowed, or of layers that are not."""
        modules = modules_of(table)
        if self.rank is not None and (other := [module for module in modules if module.rank > self.rank]):
            raise broken("rank", f"the adapter has rank {other[0].rank}")
        if self.targets is not None:
            last = {module.name.rsplit(".", 1)[-1] for module in modules}
            if unknown := sorted(last - set(self.targets)):
                raise broken("targets", f"layers {foreign(unknown[0], 64)} are not among them")
        if self.parameters is not None and table.elements > self.parameters:
            raise broken("parameters", f"the adapter has {table.elements}")

    def check_plain(self) -> None:
        """Raises BrokenRuleError where an update may leave only masked, and this one would not be."""
        if self.secure_aggregation:
            raise broken("secure_aggregation", "the task asks for an update without it")

    def check_size(self, payload: int) -> None:
        """Raises BrokenRuleError where so many bytes may not leave at once."""
        if self.update_bytes is not None and payload > self.update_bytes:
            raise broken("update_bytes", f"the update has {payload} bytes")


class SiteFile(_Section):
    """A site's TOML file.

    Attributes:
        rules: the [rules] table.
        privacy: the [privacy] table: what the site's data may ever give away.
        data: the [data] tables, where `data` of the site's settings names the same file (`site`).
    """

    rules: Rules = Rules()
    privacy: SitePrivacy | None = None
    data: Any = None


class BrokenRuleError(RulesError):
    """What is asked breaks a rule. The message names the rule, and may go to the server."""


def broken(rule: str, what: str, table: str = "rules") -> BrokenRuleError:
    """A refusal by a rule's name."""
    return BrokenRuleError(f"the site's rules do not allow this ({table}.{rule}): {what}")


def load(path: Path) -> tuple[SiteFile, str]:
    """A site's rules, and the SHA-256 of their file in hexadecimal.

    Raises:
        RulesError: there is no such file, it is no TOML, open to others' writing, has an unknown key or a wrong value,
            or no [rules] and no [privacy] table.
    """
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise RulesError(f"the rules {path}: {getattr(error, 'strerror', None) or error}; nothing is done") from None
    if os.name == "posix" and mode & stat.S_IWOTH:
        raise RulesError(f"the rules {path}: every user of the machine may change them; chmod o-w {path.name}")
    return parse(content, str(path)), hashlib.sha256(content).hexdigest()


def parse(content: bytes, where: str) -> SiteFile:
    """The rules that a file holds. Raises RulesError as `load`."""
    try:
        if len(content) > toml.LONGEST:
            raise ValueError(f"is longer than {toml.LONGEST >> 20} MiB")
        tree = toml.loads(content.decode())
        for keys, known, prefix in tables(SiteFile, tree, ""):
            refuse_unknown(keys, known, prefix)
        found = SiteFile.model_validate(tree)
    except ValidationError as error:
        raise RulesError("\n".join([f"the rules {where} are wrong:", *explain(error, "")])) from None
    except (ValueError, RecipeError) as error:
        raise RulesError(f"the rules {where}: {foreign(error)}") from None
    if not found.model_fields_set & {"rules", "privacy"}:
        raise RulesError(f"the rules {where}: no [rules] and no [privacy] table; expected at least one")
    return found


def section(job: Job, name: str) -> dict[str, Any]:
    """A table of a job's recipe; empty where it has none."""
    found = (job.recipe or {}).get(name)
    return found if isinstance(found, dict) else {}

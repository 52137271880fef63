"""How our own ClientApp trains: the model, LoRA and training tables of the recipe, on the site's own data."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from fedsrd.core.tensors import TensorTable
from fedsrd.federation.client import Client, Trainer
from fedsrd.federation.remote.gate import Metrics
from fedsrd.federation.remote.header import Job
from fedsrd.federation.remote.replica import Replica
from fedsrd.federation.remote.site import Site
from fedsrd.federation.session import Assets, Privacy, Session
from fedsrd.federation.setup import method_of, shapes
from fedsrd.privacy.ledger import site_secret
from fedsrd.recipe import ClientSection, DataSection, Recipe, parse
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord
from fedsrd.text import printable

ASSETS = Assets()
"""Model and data of this process. In a simulation a process serves many messages; in a deployment, one."""
LOGGER = logging.getLogger("flwr")


class LogObserver:
    """Tells Flower's log."""

    def say(self, text: str) -> None:
        """A line."""
        LOGGER.info(printable(text))

    def warn(self, text: str) -> None:
        """A warning."""
        LOGGER.warning(printable(text))

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """A line for the first and the last step."""
        if done in (1, total):
            LOGGER.info(printable(f"round {round_number}  {what}  {done}/{total} {detail}"))

    def round_done(self, record: RoundRecord) -> None:
        """Nothing."""


class RecipeRuntime:
    """`respond.ClientRuntime` of a client whose whole training the recipe says."""

    strict = True
    knows_model = True

    def __init__(self) -> None:
        self._observer = LogObserver()

    def table(self, job: Job) -> TensorTable:
        """From the model's config alone."""
        return shapes(_recipe(job, "client", []), self._observer, ASSETS)[0]

    def trainer(self, job: Job, site: Site) -> Trainer:
        """Loads model and data, unless this process has them."""
        session = self._session(job, site)
        trainer: Trainer = session.trainers()[site.name]
        return trainer

    def evaluate(self, client: Client, job: Job, round_number: int) -> Metrics:
        """Nothing: a recipe measures quality at the server."""
        return {}

    def finish(self, client: Client, job: Job, site: Site, replica: Replica) -> None:
        """Writes the adapter to the site's own disk, for PEFT; a simulation's client leaves nothing."""
        from fedsrd.training.models import adapter_config, adapter_tensors, merged_tensors

        if site.simulated:
            replica.remove()
            return
        recipe = _recipe(job, site.name, [])
        lora = shapes(recipe, self._observer, ASSETS)[1]
        method = method_of(job.method)
        if method.server_model:
            self._observer.say(f"{method.name}: the adapter is at the server")
            return
        model = client.model(client.state) if method.personal else method.model(client.state, {})
        tensors, ranks = adapter_tensors(model), None
        if method.changes_base:
            tensors, ranks = merged_tensors(model, client.state.base_delta)
        config = adapter_config(lora, recipe.model.id, recipe.model.revision, ranks)
        found = RunFolder(replica.folder).write_adapter(config, tensors)
        self._observer.say(f"Adapter: {found}")

    def _session(self, job: Job, site: Site) -> Session:
        recipe = _recipe(job, site.name, site.sections(job.data))
        lora = shapes(recipe, self._observer, ASSETS)[1]
        if site.simulated:
            privacy = replace(Privacy.of_run(recipe, Replica(site.state, site.run, site.name).folder), run=site.run)
        else:
            # Of the site's data, whatever run comes: not in the run's folder, and from no seed of the server's.
            privacy = Privacy(lambda name: site.state / "privacy" / name, site_secret, site.run, site.privacy)
        return Session(recipe, lora, self._observer, ASSETS, privacy)


def _recipe(job: Job, name: str, data: Sequence[DataSection]) -> Recipe:
    recipe = parse(
        {**(job.recipe or {}), "seed": job.seed, "method": job.method, "clients": [{"name": name}]},
        "the server's recipe",
    )
    if data:
        recipe = recipe.model_copy(update={"clients": [ClientSection(name=name, data=data[0], also=list(data[1:]))]})
    return recipe

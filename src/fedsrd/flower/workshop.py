"""How our own ClientApp trains: the model, LoRA and training tables of the recipe, on the site's own data."""

import logging
from collections.abc import Sequence

from flwr.app import RecordDict

from fedsrd.core.factors import ShapeTable
from fedsrd.federation.client import Client, Trainer
from fedsrd.federation.session import Assets, Session
from fedsrd.federation.setup import method_of, shapes
from fedsrd.flower.notes import Work
from fedsrd.flower.replica import Replica
from fedsrd.flower.site import Site
from fedsrd.recipe import ClientSection, DataSection, Recipe, parse
from fedsrd.runs.folder import RunFolder
from fedsrd.runs.records import RoundRecord

ASSETS = Assets()
"""Model and data of this process. In a simulation a process serves many messages; in a deployment, one."""
LOGGER = logging.getLogger("flwr")


class LogObserver:
    """Tells Flower's log."""

    def say(self, text: str) -> None:
        """A line."""
        LOGGER.info(text)

    def warn(self, text: str) -> None:
        """A warning."""
        LOGGER.warning(text)

    def activity(self, round_number: int, what: str, done: int, total: int, detail: str = "") -> None:
        """A line for the first and the last step."""
        if done in (1, total):
            LOGGER.info(f"round {round_number}  {what}  {done}/{total} {detail}")

    def round_done(self, record: RoundRecord) -> None:
        """Nothing."""


class RecipeWorkshop:
    """`node.Workshop` of a client whose whole training the recipe says."""

    strict = True

    def __init__(self) -> None:
        self._observer = LogObserver()

    def table(self, work: Work) -> ShapeTable:
        """From the model's config alone."""
        return shapes(_recipe(work, "client", []), self._observer, ASSETS)[0]

    def trainer(self, work: Work, site: Site) -> Trainer:
        """Loads model and data, unless this process has them."""
        session = self._session(work, site)
        trainer: Trainer = session.trainers()[site.name]
        return trainer

    def look(self, client: Client, work: Work, round_number: int) -> RecordDict:
        """Nothing: a recipe measures quality at the server."""
        return RecordDict()

    def finish(self, client: Client, work: Work, site: Site, replica: Replica) -> None:
        """Writes the adapter to the site's own disk, for PEFT; a simulation's client leaves nothing."""
        from fedsrd.training.models import adapter_config, adapter_tensors, merged_tensors

        if site.simulated:
            replica.remove()
            return
        recipe = _recipe(work, site.name, [])
        lora = shapes(recipe, self._observer, ASSETS)[1]
        method = method_of(work.method)
        if method.server_model:
            self._observer.say(f"{method.name}: the adapter is at the server")
            return
        tensors, ranks = adapter_tensors(client.model(client.factors) if method.personal else client.factors), None
        if method.changes_base:
            tensors, ranks = merged_tensors(client.factors, client.base)
        config = adapter_config(lora, recipe.model.id, recipe.model.revision, ranks)
        found = RunFolder(replica.folder).write_adapter(config, tensors)
        self._observer.say(f"Adapter: {found}")

    def _session(self, work: Work, site: Site) -> Session:
        recipe = _recipe(work, site.name, site.sections(work.data))
        lora = shapes(recipe, self._observer, ASSETS)[1]
        return Session(recipe, lora, self._observer, ASSETS)


def _recipe(work: Work, name: str, data: Sequence[DataSection]) -> Recipe:
    recipe = parse(
        {**(work.recipe or {}), "seed": work.seed, "method": work.method, "clients": [{"name": name}]},
        "the server's recipe",
    )
    if data:
        recipe = recipe.model_copy(update={"clients": [ClientSection(name=name, data=data[0], also=list(data[1:]))]})
    return recipe

"""What a recipe's own run will cost: its method with its options, its number types, its clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsrd import methods, wire
from fedsrd import recipe as recipes
from fedsrd.core import lora
from fedsrd.core.tensors import TensorTable
from fedsrd.federation.sampling import share
from fedsrd.federation.sums import Form
from fedsrd.methods import Method, RoundContext
from fedsrd.planning import forecast, payloads
from fedsrd.planning.architecture import Architecture
from fedsrd.planning.forecast import Setting
from fedsrd.planning.payloads import Cost, Wires
from fedsrd.recipe import Recipe, chosen_method
from fedsrd.wire import WireOptions

WIDEST = 512
"""Features of the modules that are measured: a quarter of the elements that the long table takes, and lengths within
3 % of real ones all the same; sums of integers are within 1 %, and what the server makes of them within 6 %
(tests/planning/test_plan_against_runs.py)."""
NF4 = "int4"
"""What `memory.BYTES` calls a base in 4 bits."""


@dataclass(frozen=True)
class Links:
    """One client's links, bits a second."""

    up: float = Setting.up
    down: float = Setting.down


def read(path: Path | None, overrides: Sequence[str] = ()) -> tuple[Recipe, bool]:
    """A recipe, the embedded default for None, and whether it has a [compare] table, which is left out: then this is
    what its runs have in common.

    Raises:
        RecipeError: as `recipe.load`.
    """
    tree, where = recipes.read(path, overrides)
    compared = tree.pop("compare", None) is not None
    return recipes.parse(tree, where), compared


def setting_of(recipe: Recipe, links: Links, density: float, clients: int | None = None) -> Setting:
    """A recipe as the planner's setting.

    Args:
        recipe: the recipe.
        links: of a client.
        density: share of elements that an adaptive ratio keeps.
        clients: that take part in a round; None: as many as the recipe asks.
    """
    asked = recipe.participation
    return Setting(
        clients or share(len(recipe.clients), asked.fraction, asked.minimum),
        recipe.rounds,
        links.up,
        links.down,
        recipe.model.dtype if recipe.model.quantization == "none" else NF4,
        recipe.training.batch_size,
        recipe.training.max_length,
        recipe.model.gradient_checkpointing,
        density,
    )


def plan(recipe: Recipe, model: Architecture, setting: Setting) -> dict[str, Any]:
    """Bytes, time on the links, memory and disk of the run, as plain data; beside its method FedAvg in float32.

    Args:
        recipe: the recipe.
        model: its base model with its adapter.
        setting: of `setting_of`.
    """
    kind, options = chosen_method(recipe.method)
    method = kind(options)
    own = cost(recipe, method, model.table, setting)
    state = 4.0 * model.table.elements
    rows = [_row(method.name, _numbers(recipe, method, setting.clients), own.up, own.down, state, recipe, setting)]
    if method.name != "fedavg" or recipe.summed is not None or recipe.wire.uplink != WireOptions():
        fedavg = methods.get("fedavg")
        plain = payloads.costs_of(
            fedavg(fedavg.Options()), model.table, setting.clients, [Wires(WireOptions(), WireOptions())], WIDEST // 2
        )[0]
        rows.append(_row("fedavg", "float32", plain.up, plain.down, state, recipe, setting))
    return {
        **forecast.frame(model, setting),
        "methods": rows,
        "recipe": {
            "name": recipe.name,
            "clients": [entry.name for entry in recipe.clients],
            "rank": recipe.lora.rank,
            "adaptive": is_adaptive(method),
            "reference": method.reference,
            "secure_aggregation": recipe.privacy.secure_aggregation is not None,
        },
    }


def is_adaptive(method: Method) -> bool:
    """Whether the share of elements that are sent follows from the updates themselves."""
    options = method.options
    chosen = getattr(options, "sparsifier", "importance")
    return getattr(options, "ratio", None) == "adaptive" and chosen in ("importance", "magnitude", "random")


def cost(recipe: Recipe, method: Method, table: TensorTable, setting: Setting) -> Cost:
    """What a client that takes part in a round sends, and what one broadcast has, in bytes."""
    if method.reference:
        return Cost(0.0, 0.0)
    measured = method
    if is_adaptive(method):
        fixed = {"ratio": "fixed", "alpha": 1.0 - setting.density, "upper": 0.9999}
        measured = type(method)(type(method.options)(**{**method.options.model_dump(), **fixed}))
    wires = Wires(recipe.wire.uplink, recipe.wire.downlink)
    found = payloads.costs_of(measured, table, setting.clients, [wires], WIDEST)[0]
    return found if recipe.summed is None else Cost(_sum_bytes(recipe, method, table, setting.clients)[0], found.down)


def _row(
    name: str, numbers: str, up: float, down: float, state: float, recipe: Recipe, setting: Setting
) -> dict[str, Any]:
    # Who is not asked gets what it missed with its next task, or the whole state where that is smaller.
    received = min(down * max(len(recipe.clients), setting.clients), state * setting.clients)
    return {
        "method": name,
        "values": numbers,
        "up_bytes": round(up),
        "down_bytes": round(down),
        "total_bytes": round((up * setting.clients + received) * setting.rounds),
        "link_seconds_a_round": 8 * up / setting.up + 8 * down / setting.down,
    }


def _numbers(recipe: Recipe, method: Method, clients: int) -> str:
    if method.reference:
        return "sends nothing"
    wires = recipe.wire
    if recipe.summed is not None:
        bits = _sum_bytes(recipe, method, lora.table_of([lora.LoraModule("x", 8, 8, 1)]), clients)[1]
        return f"{bits} bits in sums, {wires.downlink.values}"
    up, down = wires.uplink.values, wires.downlink.values
    return up if up == down else f"{up}, {down}"


class _Expected(Form):
    """A sum's form whose parts that are drawn count as many elements as is expected of them: nothing is drawn."""

    @cached_property
    def counts(self) -> dict[str, int]:
        sizes = {spec.name: spec.elements for spec in self.table.specs}
        return {
            name: sizes[name] if draw is None else round(sizes[name] * draw.keep)
            for name, draw in self.elements.items()
        }


def _sum_bytes(recipe: Recipe, method: Method, table: TensorTable, clients: int) -> tuple[float, int]:
    """Bytes of a client's integers in a round, the mean of an odd and an even one, and bits of each."""
    options = recipe.summed
    if options is None:
        raise ValueError("the recipe adds nothing up")
    private, secure = recipe.privacy.clients, recipe.privacy.secure_aggregation
    noise = None if private is None or secure is None else (private, secure.threshold)
    forms = [
        _Expected.of(method, table, options, RoundContext(number, recipe.seed), clients, noise) for number in (1, 2)
    ]
    header = len(wire.encode_sum(b"", forms[0].bits, table, 1, 0))
    return header + sum(form.layout.bytes for form in forms) / len(forms), max(form.bits for form in forms)

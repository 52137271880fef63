"""What a recipe's own run will cost: its method with its options, its number types, its clients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedsrd import methods, wire
from fedsrd.core import lora
from fedsrd.core.tensors import TensorTable
from fedsrd.federation.sampling import share
from fedsrd.federation.setup import noise_of
from fedsrd.federation.sums import Form
from fedsrd.methods import Method, RoundContext
from fedsrd.planning import architecture, forecast, payloads
from fedsrd.planning.architecture import Architecture
from fedsrd.planning.forecast import Setting
from fedsrd.planning.payloads import Cost, Wires
from fedsrd.privacy.options import PrivacySection
from fedsrd.recipe import Recipe, WireSection, chosen_method

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


def plan(runs: Mapping[str, Recipe], model: Architecture, setting: Setting) -> dict[str, Any]:
    """Bytes, time on the links, memory and disk, as plain data; below the runs' rows FedAvg's in float32.

    Args:
        runs: one recipe, or those of a comparison, by label. All but the rows is of the first.
        model: the first one's base model with its adapter.
        setting: the first one's, of `setting_of`.
    """
    first = next(iter(runs.values()))
    rows = []
    for label, recipe in runs.items():
        same = (recipe.model, recipe.lora) == (first.model, first.lora)
        its = model if same else architecture_of(recipe)
        rows.append(_row(label, recipe, its, replace(setting, **_asked(recipe, setting, first))))
    plain = first.model_copy(update={"method": {"name": "fedavg"}, "wire": WireSection(), "privacy": PrivacySection()})
    if all(not _is_plain(recipe) for recipe in runs.values()):
        rows.append(_row("fedavg", plain, model, setting, WIDEST // 2))
    chosen = [_method_of(recipe) for recipe in runs.values()]
    return {
        **forecast.frame(model, setting),
        "methods": rows,
        "recipe": {
            "name": first.name,
            "variants": len(runs),
            "method": chosen[0].name,
            "clients": [entry.name for entry in first.clients],
            "rank": first.lora.rank,
            "adaptive": any(map(is_adaptive, chosen)),
            "secure_aggregation": first.privacy.secure_aggregation is not None,
        },
    }


def architecture_of(recipe: Recipe) -> Architecture:
    """The sizes of a recipe's model with its adapter. Raises ModelError as `architecture.architecture`."""
    return architecture.architecture(recipe.model.id, recipe.lora.rank, recipe.lora.targets, recipe.model.revision)


def _asked(recipe: Recipe, setting: Setting, first: Recipe) -> dict[str, Any]:
    """Clients and rounds of one of several runs: its own, where they are not the first one's."""
    own, theirs = (setting_of(one, Links(), setting.density) for one in (recipe, first))
    return {name: getattr(own, name) for name in ("clients", "rounds") if getattr(own, name) != getattr(theirs, name)}


def _method_of(recipe: Recipe) -> Method:
    kind, options = chosen_method(recipe.method)
    return kind(options)


def _is_plain(recipe: Recipe) -> bool:
    """Whether it is FedAvg in float32 itself."""
    return recipe.summed is None and recipe.wire == WireSection() and recipe.method == _plain_method()


def _plain_method() -> dict[str, Any]:
    return {"name": "fedavg", **methods.get("fedavg").Options().model_dump()}


def is_adaptive(method: Method) -> bool:
    """Whether the share of elements that are sent follows from the updates themselves."""
    options = method.options
    chosen = getattr(options, "sparsifier", "importance")
    return getattr(options, "ratio", None) == "adaptive" and chosen in ("importance", "magnitude", "random")


def cost(recipe: Recipe, method: Method, table: TensorTable, setting: Setting, widest: int = WIDEST) -> Cost:
    """What a client that takes part in a round sends, and what one broadcast has, in bytes."""
    if method.reference:
        return Cost(0.0, 0.0)
    measured = method
    if is_adaptive(method):
        fixed = {"ratio": "fixed", "alpha": 1.0 - setting.density, "upper": 0.9999}
        measured = type(method)(type(method.options)(**{**method.options.model_dump(), **fixed}))
    wires = Wires(recipe.wire.uplink, recipe.wire.downlink)
    found = payloads.costs_of(measured, table, setting.clients, [wires], widest)[0]
    return found if recipe.summed is None else Cost(_sum_bytes(recipe, method, table, setting.clients)[0], found.down)


def _row(label: str, recipe: Recipe, model: Architecture, setting: Setting, widest: int = WIDEST) -> dict[str, Any]:
    method = _method_of(recipe)
    found = cost(recipe, method, model.table, setting, widest)
    # Who is not asked gets what it missed with its next task, or the whole state where that is smaller.
    state = 4.0 * model.table.elements
    received = min(found.down * max(len(recipe.clients), setting.clients), state * setting.clients)
    return {
        "method": label or method.name,
        "values": _numbers(recipe, method, setting.clients),
        "up_bytes": round(found.up),
        "down_bytes": round(found.down),
        "total_bytes": round((found.up * setting.clients + received) * setting.rounds),
        "link_seconds_a_round": 8 * found.up / setting.up + 8 * found.down / setting.down,
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
    forms = [
        _Expected.of(method, table, options, RoundContext(number, recipe.seed), clients, noise_of(recipe))
        for number in (1, 2)
    ]
    header = len(wire.encode_sum(b"", forms[0].bits, table, 1, 0))
    return header + sum(form.layout.bytes for form in forms) / len(forms), max(form.bits for form in forms)

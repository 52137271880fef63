"""A plan's tables for the terminal."""

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from fedsrd.planning.links import duration
from fedsrd.report.screen import styled

Record = dict[str, Any]
MIB, GIB = 1 << 20, 1 << 30
_NAMED = 6
"""Clients that are named in a line."""


def plan_tables(plan: Record) -> list[RenderableType]:
    """What the model is, bytes and time by method and number type, memory; of a recipe, what the whole run takes."""
    setting, recipe = plan["setting"], plan.get("recipe")
    table = Table(
        title=f"A client's payloads in a round, MiB; {setting['clients']} clients, {setting['rounds']} rounds, "
        f"{setting['up'] / 1e6:g} Mbit/s up, {setting['down'] / 1e6:g} down",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
    )
    for head in ("method", "numbers", "up", "down", "all", "a round"):
        table.add_column(head, justify="left" if head in ("method", "numbers") else "right", no_wrap=True)
    before = None
    for row in plan["methods"]:
        table.add_row(
            row["method"] if row["method"] != before else "",
            row["values"],
            f"{row['up_bytes'] / MIB:.1f}",
            f"{row['down_bytes'] / MIB:.1f}",
            size(row["total_bytes"]),
            duration(row["link_seconds_a_round"]),
            end_section=False,
        )
        before = row["method"]
    memory, disk = plan["client_memory"], plan["disk"]
    parts = ", ".join(f"{name} {memory[name] / GIB:.1f}" for name in ("base", "adapter", "activations", "logits"))
    dense = plan["dense_float32_bytes"] / MIB
    assumed = (
        ""
        if recipe is not None and not recipe["adaptive"]
        else f" Density of adaptive uplinks: {setting['density']:.1%} (assumed; --density)."
    )
    return [
        *([] if recipe is None else [_of_recipe(recipe, setting)]),
        styled(
            "bold",
            plan["model"],
            f": {plan['parameters'] / 1e9:.2f} billion parameters; the adapter has {plan['adapter_parameters']:,} on "
            f"{plan['adapted_modules']} modules, {dense:.0f} MiB in float32\n",
        ),
        table,
        f"Time is that of the payloads on one client's links; training comes on top.{assumed}\n",
        *([] if recipe is None or recipe["variants"] > 1 else [_whole_run(plan)]),
        f"A client's accelerator: about {memory['total'] / GIB:.1f} GiB ({parts}) for {setting['batch']} x "
        f"{setting['length']} tokens{', with gradient checkpointing' if setting['checkpointing'] else ''}. "
        f"Disk: {disk['client'] / GIB:.1f} GiB.\n"
        f"The server, no accelerator: about {plan['server_memory'] / GIB:.1f} GiB of memory, "
        f"{disk['run folder'] / GIB:.1f} GiB of disk.",
        *([] if "privacy" not in plan else privacy_lines(plan["privacy"])),
    ]


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3_500_000), size(12e9)
    ('3.3 MiB', '11.2 GiB')
    """
    if count < GIB:
        return f"{count / MIB:.1f} MiB"
    return f"{count / GIB:.2f} GiB" if count < 10 * GIB else f"{count / GIB:.1f} GiB"


def _of_recipe(recipe: Record, setting: Record) -> RenderableType:
    names = recipe["clients"]
    who = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    asked = (
        f"{len(names)} clients"
        if setting["clients"] == len(names)
        else f"{setting['clients']} of {len(names)} clients a round"
    )
    what = recipe["method"] if recipe["variants"] == 1 else f"{recipe['variants']} variants"
    secure = ", secure aggregation" if recipe["secure_aggregation"] else ""
    return styled(
        "bold",
        f"{recipe['name']}: {what}",
        f", rank {recipe['rank']}, {asked} ({who}), {setting['rounds']} rounds{secure}",
    )


def _whole_run(plan: Record) -> RenderableType:
    own, others = plan["methods"][0], plan["methods"][1:]
    rounds = plan["setting"]["rounds"]
    text = (
        f"The whole run: {size(own['total_bytes'])} between the server and all clients, "
        f"{duration(own['link_seconds_a_round'] * rounds)} on the links of a client that takes part in all rounds"
    )
    for other in others if own["total_bytes"] else ():
        times = other["total_bytes"] / own["total_bytes"]
        text += f"; {other['method']} in {other['values']}: {times:.3g} times the bytes"
    secure = ". The handshakes of secure aggregation come on top" if plan["recipe"]["secure_aggregation"] else ""
    return f"{text}{secure}.\n"


def privacy_lines(found: Record) -> list[RenderableType]:
    """What a budget of differential privacy of examples allows."""
    table = Table(
        title=f"\nDifferential privacy of examples: {found['examples']:,} of them, {found['batch']} a step on average, "
        f"{found['rounds']} rounds of {found['steps']} steps ({found['passes']:.3g} passes), delta {found['delta']:g}",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
    )
    for head in ("epsilon", "noise multiplier", "noise in an element of the mean gradient, in clips"):
        table.add_column(head, justify="right")
    for row in found["noise"]:
        table.add_row(f"{row['epsilon']:g}", f"{row['noise_multiplier']:g}", f"{row['deviation_in_clips']:.4f}")
    lines: list[RenderableType] = [table]
    if found["delta"] * found["examples"] >= 1:
        lines.append(
            f"delta = {found['delta']:g} is no less than 1/{found['examples']}: it would allow one example to be told "
            "whole; choose less than a tenth of that"
        )
    return lines

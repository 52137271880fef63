"""`fedsrd inspect` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def payload_tables(found: Mapping[str, Any], title: str) -> list[Table]:
    """What `wire.inspect.inspect_payload` found, as tables: the facts, the sections, the tensors."""
    facts = Table(title=title, show_header=False, box=box.SIMPLE, pad_edge=False)
    for key, value in found.items():
        if key not in ("sections", "tensors"):
            facts.add_row(key.replace("_", " "), _text(value))
    tables = [facts]
    if found.get("sections"):
        sections = Table(title="Sections, against the entropy of their model", box=box.SIMPLE, pad_edge=False)
        for column in ("section", "bytes", "entropy", "ratio", "bits an element"):
            sections.add_column(column, justify="left" if column == "section" else "right")
        for name, section in found["sections"].items():
            size, entropy = section["bytes"], section["entropy_bytes"]
            ratio = f"{size / entropy:.4f}" if entropy else ""
            sections.add_row(name, f"{size:,}", f"{entropy:,.0f}", ratio, f"{section['bits_per_element']:.4f}")
        tables.append(sections)
    if found.get("tensors"):
        rows = Table(title="Tensors", box=box.SIMPLE, pad_edge=False)
        for column in ("tensor", "travels", "density"):
            rows.add_column(column, justify="right" if column == "density" else "left")
        for name, tensor in found["tensors"].items():
            rows.add_row(name, tensor["travels"], f"{tensor['density']:.2%}")
        tables.append(rows)
    return tables


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

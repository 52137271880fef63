"""Figures by matplotlib: whatever a variant is called stands in them as it is, and is no markup."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedsrd.report.figures.static import draw

STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-main.json"
LABELS = (r"$\frac{", r"a $x_^$ b", "_^", "</text><script>alert(1)</script>", "]]>&amp;<!--", r"\$ $ \\$", "100 % {x}")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    results = json.loads(STORED.read_text())
    results["rows"] = [row for row in results["rows"] if row["runs"]][: len(LABELS)]
    for row, label in zip(results["rows"], LABELS, strict=True):
        row["label"] = label
        for curve in row["curves"]:
            curve["density"] = {f"$\\frac{{{key}": value for key, value in curve["density"].items()}
    return draw(results, tmp_path_factory.mktemp("figures"))


def test_names_are_shown_as_they_are(drawn):
    assert {file.name for file in drawn} >= {"pareto.svg", "rounds.svg", "bytes.svg", "seconds.svg", "sparsity.png"}
    texts = {}
    for file in drawn:
        if file.suffix == ".svg":
            tree = ElementTree.parse(file)
            tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
            assert not tags & {"script", "foreignObject", "a"}
            named = [element for element in tree.iter() if element.tag.endswith("text")]
            texts[file.stem] = {"".join(element.itertext()).strip() for element in named}
    for label in LABELS:
        assert label in texts["bytes"] | texts["rounds"] | texts["pareto"]
